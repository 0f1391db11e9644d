"""Write a manifest with the SHA-256 of every file into a checkpoint, last of all, and verify each file on a resume."""

import re
import shutil
from pathlib import Path
from typing import Any

from tdistill.runtime.errors import TrainingError
from tdistill.runtime.files import read_json, sync_tree, write_json
from tdistill.runtime.hashes import file_sha256

# Written last into a checkpoint: one without it was cut short and is not resumed from.
MANIFEST = "tdistill.complete"
_NAME = re.compile(r"checkpoint-(\d{1,18})")
# Files that a resume reads if they exist. A callback may add other files.
_READ = re.compile(
    r"(model.*|adapter_.*|value_head|target_network)\.(safetensors|bin|json)|(optimizer|scheduler|scaler|rng_state).*|trainer_state\.json"
)


def step_of(checkpoint: Path) -> int | None:
    """Return the step in a checkpoint's name, or None if the name is none of a checkpoint."""
    found = _NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else None


def find_checkpoints(directory: Path) -> list[Path]:
    """Return the directories named ``checkpoint-STEP``, in the order of their steps."""
    found = [(step, path) for path in directory.glob("checkpoint-*") if path.is_dir() and (step := step_of(path)) is not None]
    return [path for _, path in sorted(found)]


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None."""
    return next((path for path in reversed(find_checkpoints(directory)) if (path / MANIFEST).exists()), None)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its manifest first: a kill half-way leaves one that was cut short, not one that is damaged."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def drop_checkpoints(directory: Path) -> None:
    """Remove all checkpoints, and the directory unless a tracker has its logs there."""
    for path in find_checkpoints(directory):
        remove_checkpoint(path)
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()


def drop_unfinished(directory: Path) -> None:
    """Remove the checkpoints that a kill cut short."""
    for path in find_checkpoints(directory):
        if not (path / MANIFEST).exists():
            shutil.rmtree(path)


def seal(checkpoint: Path, run: dict[str, Any]) -> None:
    """Put a checkpoint on the disk and write its manifest.

    Args:
        checkpoint: directory with all its files.
        run: what a run must share with this one to go on from the checkpoint, as JSON values.
    """
    sync_tree(checkpoint)
    files = {name: file_sha256(checkpoint / name) for name in _files(checkpoint)}
    write_json(checkpoint / MANIFEST, {"step": step_of(checkpoint), "run": run, "files": files})


def verify(checkpoint: Path, run: dict[str, Any]) -> None:
    """Check that a checkpoint is as it was written, and that it is of this run.

    Raises:
        TrainingError: the checkpoint was cut short, a file is missing, was changed or was added, or another run wrote it.
    """
    if not (checkpoint / MANIFEST).is_file():
        raise TrainingError(f"{checkpoint} has no {MANIFEST}: it is no checkpoint, or writing it was cut short. {_advice(checkpoint)}")
    manifest = read_json(checkpoint / MANIFEST, TrainingError, _advice(checkpoint))
    files, there = _recorded(checkpoint, manifest), set(_files(checkpoint))
    if lost := sorted(files.keys() - there):
        raise TrainingError(f"{checkpoint} is damaged: {lost[0]} is missing. {_advice(checkpoint)}")
    if added := sorted(name for name in there - files.keys() if _READ.fullmatch(name)):
        raise TrainingError(f"{checkpoint} is damaged: {added[0]} was not in it when it was written. {_advice(checkpoint)}")
    for name, digest in files.items():
        if file_sha256(checkpoint / name) != digest:
            raise TrainingError(f"{checkpoint} is damaged: {name} is not as it was written. {_advice(checkpoint)}")
    for key in run.keys() | manifest["run"].keys():
        if (got := manifest["run"].get(key)) != run.get(key):
            raise TrainingError(
                f"{checkpoint} is of another run: its {key} is {got!r}, this one's is {run.get(key)!r}. Resume with the same, or start "
                "from that checkpoint's weights as a new run."
            )


def _recorded(checkpoint: Path, manifest: Any) -> dict[str, str]:
    problem = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("run"), dict):
        problem = "it is not what tdistill writes"
    elif manifest.get("step") != step_of(checkpoint):
        problem = f"it is of step {manifest.get('step')!r}"
    files: dict[str, str] = manifest.get("files", {}) if problem is None else {}
    if problem is None and not (isinstance(files, dict) and files and all(isinstance(v, str) for v in files.values())):
        problem = "it names no files"
    if problem:
        raise TrainingError(f"{checkpoint / MANIFEST} is damaged: {problem}. {_advice(checkpoint)}")
    return files


def _advice(checkpoint: Path) -> str:
    return f"Delete {checkpoint.name} to go on from the checkpoint before it, or all checkpoints in {checkpoint.parent} to start anew."


def _files(checkpoint: Path) -> list[str]:
    found = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)
