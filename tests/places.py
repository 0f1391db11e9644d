"""Find the directories of a recipe's artefacts. The models must be complete: later keys hold what they noted."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdistill.experiment import models, rollouts, students
from tdistill.experiment.artefact import MANIFEST
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.models.fingerprint import hash_sampled


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
    read = [json.loads(path.read_text()) for path in root.glob(f"*/*/{MANIFEST}")]  # links in ``latest`` too
    return {manifest["title"]: Path(manifest["kind"]) / manifest["key"] for manifest in read}


def rollout(recipe: Path | str | Experiment, split: str = "train", overrides: Sequence[str] = ()) -> Path:
    return rollouts.rollouts(found(recipe, overrides))[split].directory


def titled(run: Path, title: str, kind: str = "*") -> Path:
    """Find an artefact of an output directory by the title in its manifest, and not by its name in ``latest``."""
    found = [path for path in run.glob(f"{kind}/*/artefact.json") if path.parents[1].name != "latest"]
    (place,) = (path.parent for path in found if json.loads(path.read_text())["title"] == title)
    return place


def altered(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest, and seal it again as if it had been written so."""
    path = directory / "artefact.json"
    record = json.loads(path.read_text())
    change(record)
    content = json.dumps({k: v for k, v in record.items() if k != "checksum"}, sort_keys=True)
    path.write_text(json.dumps(record | {"checksum": hashlib.sha256(content.encode()).hexdigest()}))


def checksum(path: Path) -> str:
    """Return the checksum that a manifest holds of a file."""
    digest = hashlib.sha256()
    hash_sampled(digest, path)
    return digest.hexdigest()
