"""Evaluate every system of a run by one protocol (the stage ``evaluate``)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tdistill.data.overlap import held_out_prompts
from tdistill.experiment.evaluation import EvaluatedSystem, Protocol, evaluate_systems
from tdistill.experiment.models import load_teacher, models_info, student_tokenizer, student_trust, vocab_size
from tdistill.experiment.pipeline import Run
from tdistill.experiment.rollouts import cache, overlap_counts, read_prompts
from tdistill.experiment.students import train_systems
from tdistill.models.find import find_model
from tdistill.models.load import compute_device, load_model
from tdistill.objectives import bind
from tdistill.recipe.schema import MethodConfig
from tdistill.runtime.errors import DataError


def evaluate_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the evaluation."""
    return {"evaluation": run.recipe.evaluation.model_dump(), "seed": run.recipe.seed}


def systems(run: Run) -> list[EvaluatedSystem]:
    """Return everything that the report compares, the teacher first."""
    dtype, trust = run.recipe.evaluation.dtype, student_trust(run)

    def load(directory: Path) -> PreTrainedModel:
        return load_model(find_model(str(directory)), dtype, trust).to(compute_device())

    found = [
        EvaluatedSystem("teacher", run.teacher_source.name, partial(load_teacher, run, dtype)),
        EvaluatedSystem("start", "the student before any training", partial(load, run.directory("models") / "start")),
    ]
    if "sft" in run.stages:
        found.append(EvaluatedSystem("sft", "the start after supervised fine-tuning", partial(load, run.directory("sft"))))
    baselines = run.recipe.train.baselines
    for name, method in train_systems(run).items():
        described = _described(method, baselines[name].arguments if name in baselines else {})
        found.append(EvaluatedSystem(name, described, partial(load, run.directory("train") / name)))
    return found


def _described(method: MethodConfig, arguments: Mapping[str, Any]) -> str:
    """Return the objective in words, with the training arguments that only this student has."""
    own = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in arguments.items())
    return bind(method.objective).describe() + (f" ({own})" if own else "")


def check_references(run: Run, split: str, has_answers: bool | None = None) -> None:
    """Raise ``DataError`` if answers are compared with human ones, and the prompts of a split have none."""
    if run.recipe.evaluation.reference != "human":
        return
    if has_answers is None:
        has_answers = any(p.references for p in held_out_prompts(run.recipe.data, split))
    if not has_answers:
        raise DataError(f"evaluation.reference: human, but {getattr(run.recipe.data, split)} has no answers. Use reference: teacher.")


def protocol(run: Run, split: str = "test") -> Protocol:
    """Return what is the same for every system. ``split="valid"`` is for choosing settings."""
    recipe, tokenizer = run.recipe, student_tokenizer(run)
    prompts, _ = read_prompts(run, split, tokenizer)
    held_out = cache(run, split)
    if recipe.evaluation.reference == "human":
        references = {p.prompt.prompt_id: list(p.prompt.references) for p in prompts}
        check_references(run, split, any(references.values()))
    else:
        references = {p.prompt.prompt_id: [] for p in prompts}
        for i in range(len(held_out)):
            references[held_out.prompt_id(i)].append(held_out.text(i))
    length = recipe.evaluation.max_completion_length or recipe.rollout.max_completion_length
    ids = (models_info(run)["eos_ids"], vocab_size(run))
    shared = overlap_counts(run, {split: prompts})[split]
    return Protocol(recipe.evaluation, prompts, held_out, references, tokenizer, *ids, length, recipe.seed, split, shared)


def make_evaluation(run: Run, directory: Path) -> dict[str, Any]:
    """Measure every system."""
    shared = protocol(run)
    evaluate_systems(systems(run), partial(load_teacher, run, run.recipe.evaluation.dtype), shared, directory)
    return {"protocol": shared.describe(), "systems": [s.name for s in systems(run)]}
