"""Take roll-outs that came along with a recipe, where the recipe would make the same."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tdistill.cache.read import read_manifest
from tdistill.cache.schema import MANIFEST, canonical
from tdistill.experiment.artefact import Artefact, build
from tdistill.experiment.experiment import SPLITS, Experiment
from tdistill.experiment.models import fingerprints, teacher_notes
from tdistill.experiment.provenance import provenance
from tdistill.experiment.rollouts import read_prompts, rollouts
from tdistill.runtime.errors import OutputError
from tdistill.runtime.files import read_json, replacing
from tdistill.runtime.progress import say
from tdistill.teachers.rollouts import cache_settings

MADE_BY = "provenance.json"  # of the run that made the roll-outs: its recipe says how the teacher computed


def take_rollouts(experiment: Experiment, folder: Path) -> None:
    """Copy the roll-outs of a folder to where the experiment looks for them, split by split. The models must be complete.

    Args:
        experiment: what asks for roll-outs.
        folder: has a cache in ``train``, ``valid`` and ``test``, and ``provenance.json``; it need not exist.
    """
    for split in SPLITS:
        artefact, source = rollouts(experiment)[split], folder / split
        if not (source / MANIFEST).is_file() or experiment.is_complete(artefact):
            continue
        if would_be_made(experiment, split, folder):
            copied = replace(artefact, make=partial(_copy, artefact, source))
            build(copied, provenance(experiment.recipe), nullcontext())
            say(f"{artefact.title}: taken from {source}")
        else:
            say(f"{artefact.title}: not those of {source}, which were made by other settings")


def would_be_made(experiment: Experiment, split: str, folder: Path) -> bool:
    """Return whether the experiment would make the roll-outs of a folder: same teacher, tokenizer, template, prompts and settings."""
    prompts, _ = read_prompts(experiment, split)
    section, recipe = experiment.recipe.rollout, read_json(folder / MADE_BY, OutputError)["recipe"]
    wanted = cache_settings(section, dict(fingerprints(experiment)), teacher_notes(experiment)["eos_ids"], prompts) | {"origin": "teacher"}
    computed = [
        (t["dtype"], t["quantization"], t.get("attn_implementation")) for t in (experiment.recipe.teacher.model_dump(), recipe["teacher"])
    ]
    return canonical(read_manifest(folder / split).settings) == canonical(wanted) and computed[0] == computed[1]


def _copy(artefact: Artefact, source: Path, directory: Path) -> Mapping[str, Any]:
    """Copy a cache, the manifest last; then make what is missing, which is nothing, and return the notes."""
    for path in sorted(source.iterdir(), key=lambda p: (p.name == MANIFEST, p.name)):
        with path.open("rb") as original, replacing(directory / path.name) as copy:
            shutil.copyfileobj(original, copy)
    return artefact.make(directory)
