"""Find the directories of a recipe's artefacts. The models must be complete: later keys hold what they noted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdistill.experiment import models, rollouts, students
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute
from tdistill.experiment.recipe_checks import open_recipe


def experiment(recipe: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    return Experiment(open_recipe(recipe, list(overrides)))


def made(recipe: Path | str, overrides: Sequence[str] = (), *, stages: Sequence[str] = ("models",)) -> Experiment:
    """Make stages of a recipe."""
    found = experiment(recipe, overrides)
    found.prepare()
    for stage in stages:
        execute(found, stage)
    return found


def found(recipe: Path | str | Experiment, overrides: Sequence[str] = ()) -> Experiment:
    return recipe if isinstance(recipe, Experiment) else experiment(recipe, overrides)


def student(recipe: Path | str | Experiment, overrides: Sequence[str] = (), name: str = "distilled", seed: int | None = None) -> Path:
    every = students.students(found(recipe, overrides))
    return next(s.artefact.directory for s in every if s.name == name and seed in (None, s.seed))


def sft(recipe: Path | str | Experiment, overrides: Sequence[str] = ()) -> Path:
    tuned: Any = students.sft(found(recipe, overrides))
    return tuned.artefact.directory


def start(recipe: Path | str | Experiment, overrides: Sequence[str] = ()) -> Path:
    return models.start(found(recipe, overrides)).directory


def teacher(recipe: Path | str | Experiment, overrides: Sequence[str] = ()) -> Path:
    return models.teacher(found(recipe, overrides)).directory


def rollout(recipe: Path | str | Experiment, split: str = "train", overrides: Sequence[str] = ()) -> Path:
    return rollouts.rollouts(found(recipe, overrides))[split].directory
