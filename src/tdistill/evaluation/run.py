"""Evaluate every system of a run on the test prompts; what is already measured is kept."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.config import EvaluationConfig
from tdistill.data.dataset import RolloutDataset
from tdistill.evaluation.answers import EVALUATION_SEED_OFFSET, answer_metrics, write_answers
from tdistill.evaluation.held_out import held_out_metrics
from tdistill.evaluation.sparsity import measure_sparsity, summary
from tdistill.files import read_jsonl, write_json, write_jsonl
from tdistill.rollout.generate import Sampling
from tdistill.rollout.prompts import TokenizedPrompt

# Responses whose [T, V] log-probs are in memory at once, of teacher and student: 50 of them took 10 GB.
SCORED_AT_ONCE = 8
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
    return answer_metrics(records, *shared, f"{title or name}: scores")


def read_scores(directory: Path, name: str) -> dict:
    """What ``evaluate_systems`` wrote of a system."""
    return json.loads((directory / SCORES / f"{name}.json").read_text(encoding="utf-8"))
