"""Evaluate every system by one protocol. One measurement of one system is one artefact, so a new student is measured alone."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from tdistill.evaluation.answers import SCORED_AT_ONCE
from tdistill.evaluation.metrics import TEACHER
from tdistill.evaluation.sparsity import measure_sparsity, summary
from tdistill.experiment.answers import answers, divergences, held_out, sampling_of
from tdistill.experiment.artefact import SEED, Artefact
from tdistill.experiment.experiment import EVALUATION, Experiment
from tdistill.experiment.models import computing, teacher, teacher_notes, vocab_size
from tdistill.experiment.rollouts import overlap_count, read_prompts, rollouts
from tdistill.experiment.systems import System, load_own_teacher, release, systems
from tdistill.runtime.files import write_json
from tdistill.runtime.forms import Count, Form, Name, Positive

SPARSITY = "sparsity.json"
Place = Name  # KIND/KEY below the output directory


class ShapedForm(Form):
    """Declare what shaped a system, beside its seeds, as far as it is read."""

    arguments: dict[str, Any] = Field({})  # of its training


class SystemNotes(Form):
    """Declare what an evaluation notes of a system."""

    name: Name
    seed: Count | None
    title: Name
    description: str
    parameters: Positive
    num_hidden_layers: Positive
    system: Place
    answers: Place
    divergences: Place
    group: Name  # equal for students that differ by their seeds alone
    settings: ShapedForm


class EvaluationNotes(Form):
    """Declare what an evaluation notes."""

    protocol: Name
    teacher: Name
    prompts: list[Name] = Field(min_length=1)
    compared: dict[str, Any]
    systems: list[SystemNotes] = Field(min_length=1)


def evaluations(experiment: Experiment) -> list[Artefact]:
    """Return all measurements of all systems, and last the evaluation that lists them."""
    measured = [part for system in systems(experiment) for part in (answers(experiment, system), divergences(experiment, system))]
    return [*measured, concentration(experiment), evaluation(experiment)]


def concentration(experiment: Experiment) -> Artefact:
    """Return how concentrated the teacher is on its own answers to the test prompts."""

    def make(directory: Path) -> dict[str, Any]:
        loaded = load_own_teacher(experiment), held_out(experiment, "test"), vocab_size(experiment)
        write_json(directory / SPARSITY, summary(measure_sparsity(*loaded, SCORED_AT_ONCE)))
        return {}

    settings = computing(experiment)
    inputs = {"teacher": teacher(experiment), "rollouts": rollouts(experiment)["test"]}
    return Artefact(experiment.root, "concentration", "the teacher's concentration", settings, make, inputs)


def evaluation(experiment: Experiment) -> Artefact:
    """Return the evaluation of all systems: the list of their measurements, and what these have in common."""
    found = systems(experiment)
    inputs = {"concentration": concentration(experiment), **{f"train {s.title}": s.artefact for s in found}}
    for system in found:
        inputs |= {f"answers of {system.title}": answers(experiment, system), f"divergences of {system.title}": divergences(experiment, system)}
    # The teacher's description is the place where it lies.
    settings = {"systems": [[s.name, s.seed, s.title, *([] if s.name == TEACHER else [s.description])] for s in found]}
    make = partial(_make, experiment)
    return Artefact(experiment.root, EVALUATION, EVALUATION, settings, make, inputs, notes_form=EvaluationNotes)


def _make(experiment: Experiment, _: Path) -> dict[str, Any]:
    release(experiment)
    prompts, _skipped = read_prompts(experiment, "test")
    return {
        "protocol": describe(experiment),
        "teacher": experiment.recipe.teacher.teacher_model_name_or_path,
        "prompts": sorted(p.prompt.prompt_id for p in prompts),
        "compared": _compared(experiment),
        "systems": [_noted(experiment, system) for system in systems(experiment)],
    }


def describe(experiment: Experiment, split: str = "test") -> str:
    """Describe the protocol on the prompts of a split in one paragraph."""
    c, (prompts, _) = experiment.recipe.evaluation, read_prompts(experiment, split)
    shared = overlap_count(experiment, split, prompts)
    trained = f"{shared} of them also trained on (data.overlap: count)" if shared else "never trained on"
    count = "1 answer" if c.num_generations == 1 else f"{c.num_generations} answers"
    over = "seeds and prompts" if len(experiment.recipe.train.seeds) > 1 else "prompts"
    paired = over.replace("seeds", "seed").replace("prompts", "prompt")
    return (
        f"{len(prompts)} {split} prompts, {trained}; {count} per prompt, sampled at temperature {c.temperature:g} from the "
        f"nucleus {c.top_p:g}, up to {c.max_completion_length} tokens, seed {c.seed}, models in {c.dtype}. ROUGE-L is against the "
        f"{c.reference}'s answer. Both KLs and the mass on A_p are exact, over the whole vocabulary, per token of "
        f"{len(held_out(experiment, 'test'))} held-out teacher answers. ± is one standard error over {over}; differences are paired by "
        f"{paired}."
    )


def _compared(experiment: Experiment) -> dict[str, Any]:
    """Return what must be equal for the numbers of two evaluations to be comparable, beside the prompts."""
    own = {k: v for k, v in answers(experiment, systems(experiment)[0]).settings.items() if k not in (SEED, "max_completion_length")}
    rollout = rollouts(experiment)["test"].settings
    return {
        **{f"evaluation.{name}": value for name, value in own.items()},
        "length of an answer": sampling_of(experiment).max_completion_length,
        **{f"roll-outs' {name}": rollout[name] for name in ("temperature", "top_p", "top_k", "num_generations", "max_completion_length")},
        "chat template": teacher_notes(experiment)["template"],
        "teacher": teacher(experiment).key,
    }


def _noted(experiment: Experiment, system: System) -> dict[str, Any]:
    own, held = answers(experiment, system), divergences(experiment, system)
    facts = experiment.notes(own)
    return {
        "name": system.name,
        "seed": system.seed,
        "title": system.title,
        "description": system.description,
        "parameters": facts["parameters"],
        "num_hidden_layers": facts["num_hidden_layers"],
        "system": _place(system.artefact),
        "answers": _place(own),
        "divergences": _place(held),
        "group": system.artefact.group,
        "settings": _seedless(system.artefact),
    }


def _place(artefact: Artefact) -> str:
    return f"{artefact.kind}/{artefact.key}"


def _seedless(artefact: Artefact) -> Mapping[str, Any]:
    """Return the settings of an artefact and, by name, of its inputs, without seeds."""
    own = {name: value for name, value in artefact.settings.items() if name != SEED}
    return own | {name: _seedless(found) for name, found in artefact.inputs.items()}
