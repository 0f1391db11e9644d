"""Evaluate every system of a run on the test prompts; what is already measured is kept."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import TokenizedPrompt
from tdistill.evaluation.answers import EVALUATION_SEED_OFFSET, answer_metrics, write_answers
from tdistill.evaluation.held_out import held_out_metrics
from tdistill.evaluation.sparsity import measure_sparsity, summary
from tdistill.experiment.run_files import AnswerBounds, advice_for, read_answer_lines, read_run_file, read_scores_file
from tdistill.experiment.run_forms import ScoresForm, SparsityForm
from tdistill.recipe.schema import EvaluationConfig, Sampling
from tdistill.runtime.errors import ModelError, OutputError
from tdistill.runtime.files import write_json, write_jsonl

# Responses whose [T, V] log-probs are in memory at once, of teacher and student: 50 of them took 10 GB.
SCORED_AT_ONCE = 8
MAY_BE_UNDEFINED = "distinct_2"
SCORES, ANSWERS, SPARSITY = "scores", "answers", "sparsity.json"


@dataclass(frozen=True)
class EvaluatedSystem:
    """Describe a model to evaluate."""

    name: str
    description: str
    load: Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class Protocol:
    """Hold what is the same for every system."""

    config: EvaluationConfig
    prompts: Sequence[TokenizedPrompt]
    held_out: RolloutDataset  # the teacher's own text on these prompts
    references: dict[str, list[str]]  # prompt id → texts for ROUGE-L
    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    vocab_size: int
    max_completion_length: int
    seed: int
    split: str = "test"
    also_in_train: int = 0  # prompts of these that were trained on

    @property
    def sampling(self) -> Sampling:
        """Return how answers are sampled."""
        seed = self.seed + EVALUATION_SEED_OFFSET
        return Sampling(
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            top_k=self.config.top_k,
            max_completion_length=self.max_completion_length,
            seed=seed,
        )

    def describe(self) -> str:
        """Describe the protocol in one paragraph for the report."""
        c = self.config
        trained = f"{self.also_in_train} of them also trained on (data.overlap: count)" if self.also_in_train else "never trained on"
        return (
            f"{len(self.prompts)} {self.split} prompts, {trained}; {c.num_generations} answer(s) a prompt, sampled at temperature "
            f"{c.temperature:g} from the nucleus {c.top_p:g}, up to {self.max_completion_length} tokens, seed {self.sampling.seed}, models in "
            f"{c.dtype}. ROUGE-L is against the {c.reference}'s answer. Both KLs and the mass on A_p are exact, over the whole "
            f"vocabulary, per token of {len(self.held_out)} held-out teacher answers. ± is one standard error over prompts; "
            "differences are paired by prompt."
        )


def evaluate_systems(
    systems: Sequence[EvaluatedSystem], load_teacher: Callable[[], PreTrainedModel], protocol: Protocol, directory: Path
) -> None:
    """Write ``answers/NAME.jsonl``, ``scores/NAME.json`` (per prompt) for every system, and ``sparsity.json`` for the teacher.

    A system whose scores are there is skipped; the teacher is loaded only if one is not.

    Raises:
        OutputError: what an earlier run left is damaged.
    """
    (directory / SCORES).mkdir(parents=True, exist_ok=True)
    (directory / ANSWERS).mkdir(parents=True, exist_ok=True)
    todo = [s for s in systems if not os.path.lexists(directory / SCORES / f"{s.name}.json")]
    for done in (s for s in systems if s not in todo):
        _check_prompts(directory, read_scores(directory, done.name), protocol)
    has_sparsity = os.path.lexists(directory / SPARSITY) and bool(read_sparsity(directory))
    if not todo and has_sparsity:
        return
    teacher = load_teacher()
    vocab = protocol.vocab_size
    if not has_sparsity:
        write_json(directory / SPARSITY, summary(measure_sparsity(teacher, protocol.held_out, vocab, SCORED_AT_ONCE)))
    for system in todo:
        model = teacher if system.name == "teacher" else system.load()
        scores = answer_scores(model, system.name, teacher, protocol, directory)
        held_out = held_out_metrics(model, teacher, protocol.held_out, vocab, SCORED_AT_ONCE, f"{system.name}: divergences")
        if system.name == "teacher":
            held_out = {"student_mass": held_out["student_mass"]}
        check_finite(held_out, system.name)
        record = {
            "name": system.name,
            "description": system.description,
            "parameters": sum(p.numel() for p in model.parameters()),
            "num_hidden_layers": model.config.get_text_config().num_hidden_layers,
            "scores": scores | held_out,
        }
        write_json(directory / SCORES / f"{system.name}.json", record)


def answer_scores(
    model: PreTrainedModel, name: str, teacher: PreTrainedModel, protocol: Protocol, directory: Path, title: str | None = None
) -> dict[str, dict[str, float]]:
    """Return metric → prompt → value of a system's answers. Answers are written to ``answers/NAME.jsonl`` unless that file exists."""
    path, c = directory / ANSWERS / f"{name}.jsonl", protocol.config
    if not os.path.lexists(path):
        how = (protocol.sampling, c.num_generations, c.batch_size, protocol.eos_ids, protocol.vocab_size)
        write_jsonl(path, write_answers(model, protocol.tokenizer, protocol.prompts, *how, f"{title or name}: answers"))
    records, vocab = read_answers(path, protocol), protocol.vocab_size
    shared = (protocol.prompts, protocol.references, teacher, protocol.eos_ids, vocab, SCORED_AT_ONCE)
    scores = answer_metrics(records, *shared, f"{title or name}: scores")
    check_finite(scores, name)
    return scores


def check_finite(scores: dict[str, dict[str, float]], name: str) -> None:
    """Check that every score is a finite number, before it is written down as a result.

    Raises:
        ModelError: one is not. Only distinct-2 may be undefined, for an answer of fewer than two words.
    """
    for metric, values in scores.items():
        for prompt_id, value in values.items():
            if not math.isfinite(value) and metric != MAY_BE_UNDEFINED:
                raise ModelError(
                    f"{metric} of {name} on prompt {prompt_id!r} is {value}: the log-probs of {name} or of the teacher are not finite there. "
                    "No scores were written. Look at that model's weights, or evaluate with evaluation.dtype: float32."
                )


def read_answers(path: Path, protocol: Protocol) -> list[dict[str, Any]]:
    """Read a system's answers, which must be those to the protocol's prompts.

    Raises:
        OutputError: the file is damaged, or its answers are not what the protocol asks for.
    """
    expected = [(p.prompt.prompt_id, i) for p in protocol.prompts for i in range(protocol.config.num_generations)]
    bounds = AnswerBounds(protocol.tokenizer, protocol.eos_ids, protocol.max_completion_length, protocol.vocab_size)
    return read_answer_lines(path, expected, bounds)


def _check_prompts(directory: Path, record: dict[str, Any], protocol: Protocol) -> None:
    """Raise ``OutputError`` where scores are of other prompts than the protocol's."""
    asked = {p.prompt.prompt_id for p in protocol.prompts}
    path = directory / SCORES / f"{record['name']}.json"
    for metric, values in record["scores"].items():
        other = sorted(values.keys() ^ asked) if metric == "teacher_nll" else sorted(values.keys() - asked)
        if other:
            raise OutputError(f"{path}: {metric} is of other prompts than those of this evaluation, such as {other[0]}. {advice_for(path)}")


def read_scores(directory: Path, name: str) -> dict:
    """Return what ``evaluate_systems`` wrote of a system.

    Raises:
        OutputError: the file is missing, damaged or another system's.
    """
    return read_scores_file(directory / SCORES / f"{name}.json", ScoresForm, name=name)


def read_sparsity(directory: Path) -> dict[str, Any]:
    """Return what ``evaluate_systems`` wrote of the teacher's sparsity.

    Raises:
        OutputError: the file is missing or damaged.
    """
    return read_run_file(directory / SPARSITY, SparsityForm)
