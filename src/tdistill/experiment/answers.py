"""Make a system's answers to a prompt set with their scores, and its divergences from the teacher. Each is an artefact of its own."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from tdistill.data.dataset import RolloutDataset
from tdistill.evaluation.answer_files import ANSWERS, SCORES, AnswerBounds, answer_all, read_answers
from tdistill.evaluation.answers import SCORED_AT_ONCE, Protocol, answer_metrics, check_finite
from tdistill.evaluation.held_out import held_out_metrics
from tdistill.evaluation.metrics import TEACHER
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.models import computing, load_own_tokenizer, teacher, teacher_notes, vocab_size
from tdistill.experiment.rollouts import dataset, read_prompts, rollouts
from tdistill.experiment.systems import System, load_own_teacher, load_system
from tdistill.recipe.schema import MethodConfig, Sampling
from tdistill.runtime.errors import DataError
from tdistill.runtime.files import write_json
from tdistill.runtime.forms import Form, Name, Positive

ANSWERS_KIND, DIVERGENCES_KIND = "answers", "divergences"
TEACHER_TEXT = MethodConfig(objective={"name": "nll"})  # all of the teacher's answers, with all of their candidates


class AnswersNotes(Form):
    """Declare what a system's answers note."""

    system: Name
    prompts: Name  # the data file or set that they come from
    answers: Positive
    parameters: Positive
    num_hidden_layers: Positive


def sampling_of(experiment: Experiment, temperature: float | None = None) -> Sampling:
    """Return how answers are sampled: as the recipe's evaluation says, or at another temperature."""
    section = experiment.recipe.evaluation
    values = {name: getattr(section, name) for name in Sampling.model_fields}
    return Sampling(**(values if temperature is None else values | {"temperature": temperature}))


def answers(experiment: Experiment, system: System, split: str = "test", sampling: Sampling | None = None) -> Artefact:
    """Return a system's answers to the prompts of a split, with their scores.

    Args:
        experiment: the models and the roll-outs must be complete.
        system: who answers.
        split: whose prompts.
        sampling: how the answers are sampled; by default as the recipe's evaluation says.
    """
    section, usual = experiment.recipe.evaluation, sampling_of(experiment)
    sampling = usual if sampling is None else sampling
    settings = {
        **sampling.model_dump(),
        "num_generations": section.num_generations,
        **computing(experiment),
        "reference": section.reference,
        "references": _references_key(experiment, split) if section.reference == "human" else None,
    }
    changed = [f"{name} {value:g}" for name, value in sampling if value != getattr(usual, name)]
    at = f" at {', '.join(changed)}" if changed else ""
    return Artefact(
        experiment.root,
        ANSWERS_KIND,
        f"answers of {system.title}{at}",
        settings,
        partial(_make_answers, experiment, system, split, sampling),
        _inputs(experiment, system, split),
        notes_form=AnswersNotes,
    )


def divergences(experiment: Experiment, system: System, split: str = "test") -> Artefact:
    """Return a system's divergences from the teacher on the teacher's own answers to the prompts of a split."""
    return Artefact(
        experiment.root,
        DIVERGENCES_KIND,
        f"divergences of {system.title}",
        computing(experiment),
        partial(_make_divergences, experiment, system, split),
        _inputs(experiment, system, split),
    )


def _inputs(experiment: Experiment, system: System, split: str) -> dict[str, Artefact]:
    return {"system": system.artefact, "teacher": teacher(experiment), "rollouts": rollouts(experiment)[split]}


def _make_answers(experiment: Experiment, system: System, split: str, sampling: Sampling, directory: Path) -> dict[str, Any]:
    asked, bounds = protocol(experiment, split, sampling), AnswerBounds.of(protocol(experiment, split, sampling))
    plan, title = asked.plan(experiment.recipe.evaluation.batch_size), system.title
    records = answer_all(directory, plan, lambda batch: asked.answer(load_system(experiment, system), batch), bounds, f"{title}: answers")
    scores = answer_metrics(records, asked, references(experiment, split), partial(load_own_teacher, experiment), f"{title}: scores")
    check_finite(scores, system.title)
    write_json(directory / SCORES, scores)
    model = load_system(experiment, system)
    return {
        "system": system.title,
        "prompts": getattr(experiment.recipe.data, split),
        "answers": len(records),
        "parameters": sum(p.numel() for p in model.parameters()),
        "num_hidden_layers": model.config.get_text_config().num_hidden_layers,
    }


def _make_divergences(experiment: Experiment, system: System, split: str, directory: Path) -> dict[str, Any]:
    models = load_system(experiment, system), load_own_teacher(experiment)
    found = held_out_metrics(*models, held_out(experiment, split), vocab_size(experiment), SCORED_AT_ONCE, f"{system.title}: divergences")
    if system.name == TEACHER:
        found = {"student_mass": found["student_mass"]}
    check_finite(found, system.title)
    write_json(directory / SCORES, found)
    return {"system": system.title}


def protocol(experiment: Experiment, split: str, sampling: Sampling) -> Protocol:
    """Return how every system answers the prompts of a split."""
    prompts, _ = read_prompts(experiment, split)
    ids = (teacher_notes(experiment)["eos_ids"], vocab_size(experiment))
    return Protocol(prompts, sampling, experiment.recipe.evaluation.num_generations, load_own_tokenizer(experiment), *ids)


def read_own_answers(experiment: Experiment, system: System) -> list[dict[str, Any]]:
    """Read a system's answers to the test prompts.

    Raises:
        OutputError: they are not complete, or damaged.
    """
    artefact, asked = answers(experiment, system), protocol(experiment, "test", sampling_of(experiment))
    experiment.notes(artefact)
    expected = [(p.prompt.prompt_id, i) for p in asked.prompts for i in range(asked.num_generations)]
    return read_answers(artefact.directory / ANSWERS, expected, AnswerBounds.of(asked))


def held_out(experiment: Experiment, split: str) -> RolloutDataset:
    """Return the teacher's own answers to the prompts of a split."""
    key = (held_out, split)
    if key not in experiment.memo:
        experiment.memo[key] = dataset(experiment, split, TEACHER_TEXT)
    return experiment.memo[key]


def references(experiment: Experiment, split: str) -> dict[str, list[str]]:
    """Return prompt id → the texts that ROUGE-L compares with: the answers of the teacher, or those that came with the prompts."""
    prompts, _ = read_prompts(experiment, split)
    if experiment.recipe.evaluation.reference == "human":
        return {p.prompt.prompt_id: list(p.prompt.references) for p in prompts}
    found: dict[str, list[str]] = {p.prompt.prompt_id: [] for p in prompts}
    data = held_out(experiment, split)
    for i in range(len(data)):
        found[data.prompt_id(i)].append(data.text(i))
    return found


def check_references(experiment: Experiment, split: str) -> None:
    """Raise ``DataError`` if answers are compared with human ones, and the prompts of a split have none."""
    if experiment.recipe.evaluation.reference == "human" and not any(p.references for p in experiment.prompts(split)):
        raise DataError(f"evaluation.reference: human, but {getattr(experiment.recipe.data, split)} has no answers. Use reference: teacher.")


def _references_key(experiment: Experiment, split: str) -> str:
    content = [[p.prompt_id, p.references] for p in experiment.prompts(split)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
