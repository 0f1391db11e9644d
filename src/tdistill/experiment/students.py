"""Train students. One student is one artefact: its start, its data, its method with every default filled in, and its seed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tdistill.data.corpus import corpus_key
from tdistill.experiment.artefact import SEED, Artefact
from tdistill.experiment.experiment import Experiment, once
from tdistill.experiment.model_card import CARD_FILE, write_model_card
from tdistill.experiment.models import load_own_tokenizer, load_teacher, start, trusts_student, vocab_size
from tdistill.experiment.rollouts import cache_name, dataset, rollouts
from tdistill.objectives import BoundObjective, bind
from tdistill.recipe.schema import MethodConfig
from tdistill.runtime.errors import NonFiniteLossError, OutputError
from tdistill.runtime.files import sync_directory, write_json
from tdistill.runtime.forms import Form, Name, Number, read_form
from tdistill.runtime.processes import is_main_process
from tdistill.training.arguments import shaping_arguments
from tdistill.training.checkpoints import drop_checkpoints
from tdistill.training.checks import unread_value_settings
from tdistill.training.fit import CHECKPOINTS, ROLLOUTS, fit
from tdistill.training.inputs import FitInputs

SFT, DIVERGED = "sft", "diverged.json"
# What a student's identity says of settings that its objective does not read. It stays as it is when a default changes.
UNREAD = {"learning_rate": None, "warmup_steps": 0, "detach": False, "target_tau": 0.005}


@dataclass(frozen=True)
class Trained:
    """Describe one student of a recipe."""

    name: str  # of its method
    seed: int
    method: MethodConfig
    artefact: Artefact


class StudentNotes(Form):
    """Declare what a student notes."""

    objective: Name
    validation: dict[str, Number]


class DivergedForm(Form):
    """Declare the form of ``diverged.json``."""

    objective: Name
    error: Name


@once
def sft(experiment: Experiment) -> Trained | None:
    """Return the SFT student; None if the recipe has no ``sft`` section."""
    section = experiment.recipe.sft
    if section is None:
        return None
    return _trained(experiment, SFT, section.method(), section.seed, start(experiment))


@once
def students(experiment: Experiment) -> list[Trained]:
    """Return all students of the recipe's ``train`` section, method by method in their order, each with all seeds.

    Of an experiment that is about some methods only, the others are left out.
    """
    train, first = experiment.recipe.train, start_of_training(experiment)
    methods = {name: method for name, method in train.methods().items() if name in experiment.only}
    return [_trained(experiment, name, method, seed, first) for name, method in methods.items() for seed in train.seeds]


def start_of_training(experiment: Experiment) -> Artefact:
    """Return where distillation starts: the SFT student, or the pruned or pretrained start."""
    tuned = sft(experiment)
    return start(experiment) if tuned is None else tuned.artefact


def _trained(experiment: Experiment, name: str, method: MethodConfig, seed: int, first: Artefact) -> Trained:
    caches = {split: rollouts(experiment)[cache_name(split, method)] for split in ("train", "valid")}
    title = name if name == SFT or len(experiment.recipe.train.seeds) == 1 else f"{name}, seed {seed}"
    artefact = Artefact(
        experiment.root,
        "students",
        title,
        {**shaping(experiment, method), SEED: seed},
        partial(_make, experiment, title, method, seed, first),
        {"start": first, **caches},
        notes_form=StudentNotes,
        loose=(CHECKPOINTS, ROLLOUTS, CARD_FILE),
        after=partial(_tidy, keep=method.monitor.keep_checkpoints),
    )
    return Trained(name, seed, method, artefact)


def shaping(experiment: Experiment, method: MethodConfig) -> dict[str, Any]:
    """Return all settings of a method that shape its student, with every default filled in. What is only watched is left out."""
    bound, recipe = bind(method.objective), experiment.recipe
    p = method.teacher_top_p or recipe.rollout.teacher_top_p
    attention = recipe.student.attn_implementation
    unread = {name: UNREAD[name] for name in unread_value_settings(bound.needs)}
    return {
        "objective": bound.identity(),
        "arguments": shaping_arguments(method.arguments),
        "teacher_top_p": p,
        "candidate_rule": method.candidate_rule and method.candidate_rule.model_dump(),
        "on_policy": method.own_text and method.own_text.shaping(),
        "value": method.value.model_dump() | unread,
        "lm": method.lm and {**method.lm.model_dump(exclude={"corpus"}), "corpus": corpus_key(method.lm.corpus)},
        "peft": method.peft and method.peft.model_dump(),
        "early_stopping_patience": method.monitor.early_stopping_patience,
        "online_teacher": _online_teacher(experiment, method, bound, p),
        # Most implementations differ by rounding. Falcon's with ALiBi differ by far more, and dropout in the attention draws other noise.
        **({"attn_implementation": attention} if attention else {}),
        **({"head": method.head.shaping()} if method.head.shaping() else {}),
    }


def _online_teacher(experiment: Experiment, method: MethodConfig, bound: BoundObjective, p: float) -> Mapping[str, Any] | None:
    """Return how the teacher computes while the student trains; None where it is not asked."""
    asked = "dense" in bound.needs or p >= 1.0 or method.own_text is not None or (method.lm is not None and method.lm.reads_teacher)
    teacher = experiment.recipe.teacher
    if not asked:
        return None
    attention = {"attn_implementation": teacher.attn_implementation} if teacher.attn_implementation else {}
    return {"dtype": teacher.dtype, "quantization": teacher.quantization, **attention}


def _make(experiment: Experiment, title: str, method: MethodConfig, seed: int, first: Artefact, directory: Path) -> dict[str, Any]:
    if (earlier := divergence(directory)) is not None:
        raise NonFiniteLossError(f"{earlier} This was found in an earlier run: delete {directory} to train it again.")
    inputs = FitInputs(
        start=first.directory,
        train=dataset(experiment, "train", method),
        valid=dataset(experiment, "valid", method),
        tokenizer=load_own_tokenizer(experiment),
        vocab_size=vocab_size(experiment),
        load_teacher=partial(load_teacher, experiment),
        teacher_dtype=experiment.recipe.teacher.dtype,
        sampling=experiment.recipe.evaluation,
        trust_remote_code=trusts_student(experiment),
        attn_implementation=experiment.recipe.student.attn_implementation,
    )
    try:
        metrics = fit(inputs, method, seed, directory, title, keep_checkpoints=True)  # until the student has its manifest
    except NonFiniteLossError as error:
        if is_main_process():
            write_json(directory / DIVERGED, {"objective": bind(method.objective).describe(), "error": str(error)})
        raise
    description = bind(method.objective).describe()
    if is_main_process():
        write_model_card(directory, experiment, (title, seed), description, metrics)
    return {"objective": description, "validation": metrics}


def divergence(directory: Path) -> str | None:
    """Return why the training of a student in this directory diverged; None if it did not.

    Raises:
        OutputError: the file that says so is damaged.
    """
    path = directory / DIVERGED
    if not os.path.lexists(path):
        return None
    return str(read_form(path, DivergedForm, OutputError, f"Delete {directory} and run again.")["error"])


def _tidy(directory: Path, keep: bool) -> None:
    if is_main_process() and not keep and (directory / CHECKPOINTS).exists():
        drop_checkpoints(directory / CHECKPOINTS)
        sync_directory(directory)
