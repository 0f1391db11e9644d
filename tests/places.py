"""Find the directories of a recipe's artefacts. The models must be complete: later keys hold what they noted."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdistill.experiment import artefact, models, rollouts, students
from tdistill.experiment.artefact import MANIFEST
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


def titles(root: Path) -> dict[str, Path]:
    """Find the complete artefacts below an output directory by their titles. The paths are KIND/KEY: equal in every output directory."""
    read = [json.loads(path.read_text()) for path in root.glob(f"*/*/{MANIFEST}")]
    return {manifest["title"]: Path(manifest["kind"]) / manifest["key"] for manifest in read}


def rewrite(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an artefact's manifest, and seal it again over the files that are there now."""
    record = json.loads((directory / MANIFEST).read_text())
    record["files"] = {name: artefact._checksum(directory / name) for name in record["files"]}
    change(record)
    del record["checksum"]
    (directory / MANIFEST).write_text(json.dumps(record | {"checksum": artefact._digest(record)}))


def rollout(recipe: Path | str | Experiment, split: str = "train", overrides: Sequence[str] = ()) -> Path:
    return rollouts.rollouts(found(recipe, overrides))[split].directory
