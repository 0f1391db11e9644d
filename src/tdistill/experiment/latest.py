"""Give the results of the recipe that ran last names that people can type: links in ``output_dir/latest``."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import LATEST, Experiment
from tdistill.experiment.students import Trained, sft, students
from tdistill.runtime.processes import is_main_process


def student_names(experiment: Experiment) -> dict[str, Trained]:
    """Return name → student: ``sft``, and the methods by name, with the seed where there are several, such as ``distilled-17``."""
    tuned, several = sft(experiment), len(experiment.recipe.train.seeds) > 1
    found = {} if tuned is None else {tuned.name: tuned}
    return found | {f"{s.name}-{s.seed}" if several else s.name: s for s in students(experiment)}


def link_latest(experiment: Experiment, artefacts: Mapping[str, Artefact]) -> None:
    """Link names to the artefacts that are complete. Links to artefacts of the same kind that an earlier recipe left are replaced."""
    if not is_main_process():
        return
    folder, kinds = experiment.root / LATEST, {artefact.kind for artefact in artefacts.values()}
    for link in folder.iterdir() if folder.is_dir() else ():
        if link.is_symlink() and link.readlink().parent.name in kinds and link.name not in artefacts:
            link.unlink()
    for name, artefact in artefacts.items():
        if experiment.is_complete(artefact):
            with suppress(OSError):  # some file systems have no links; the directories have their own names
                folder.mkdir(exist_ok=True)
                _replace_link(folder / name, Path("..") / artefact.kind / artefact.key)


def _replace_link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, link)
