"""Evaluate every system of a run on the test prompts; what is already measured is kept."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.config import EvaluationConfig
from tdistill.data.dataset import RolloutDataset
from tdistill.errors import ModelError
from tdistill.evaluation.answers import EVALUATION_SEED_OFFSET, answer_metrics, write_answers
from tdistill.evaluation.held_out import held_out_metrics
from tdistill.evaluation.sparsity import measure_sparsity, summary
from tdistill.files import read_jsonl, write_json, write_jsonl
from tdistill.rollout.generate import Sampling
from tdistill.rollout.prompts import TokenizedPrompt

# Responses whose [T, V] log-probs are in memory at once, of teacher and student: 50 of them took 10 GB.
SCORED_AT_ONCE = 8
MAY_BE_UNDEFINED = "distinct_2"
SCORES, ANSWERS, SPARSITY = "scores", "answers", "sparsity.json"


@dataclass(frozen=True)
class EvaluatedSystem:
    """A model to evaluate."""

    name: str
    description: str
    load: Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class Protocol:
    """What is the same for every system."""

    config: EvaluationConfig
    prompts: Sequence[TokenizedPrompt]
    held_out: RolloutDataset  # the teacher's own text on these prompts
    references: dict[str, list[str]]  # prompt id → texts for ROUGE-L
    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    max_completion_length: int
    seed: int
    split: str = "test"

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        seed = self.seed + EVALUATION_SEED_OFFSET
        return Sampling(self.config.temperature, self.config.top_p, 0, self.max_completion_length, seed)

    def describe(self) -> str:
        """One paragraph for the report."""
        c = self.config
        return (
            f"{len(self.prompts)} {self.split} prompts, never trained on; {c.num_generations} answer(s) a prompt, sampled at temperature "
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
    """
    (directory / SCORES).mkdir(parents=True, exist_ok=True)
    (directory / ANSWERS).mkdir(parents=True, exist_ok=True)
    todo = [s for s in systems if not (directory / SCORES / f"{s.name}.json").exists()]
    if not todo and (directory / SPARSITY).exists():
        return
    teacher = load_teacher()
    vocab = len(protocol.tokenizer)
    if not (directory / SPARSITY).exists():
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
    """Metric → prompt → value of a system's answers, which are written to ``answers/NAME.jsonl`` unless they are there."""
    path, c = directory / ANSWERS / f"{name}.jsonl", protocol.config
    if not path.exists():
        how = (protocol.sampling, c.num_generations, c.batch_size, protocol.eos_ids)
        write_jsonl(path, write_answers(model, protocol.tokenizer, protocol.prompts, *how, f"{title or name}: answers"))
    records, vocab = read_jsonl(path), len(protocol.tokenizer)
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


def read_scores(directory: Path, name: str) -> dict:
    """What ``evaluate_systems`` wrote of a system."""
    return json.loads((directory / SCORES / f"{name}.json").read_text(encoding="utf-8"))
