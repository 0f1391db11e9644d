"""Damaged checkpoints: whatever was changed in a file or in the manifest, a run does not go on from it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuzz.mutate import mutated_bytes, mutated_values
from tdistill.training.checkpoints import MANIFEST, seal, verify

RUN = {"objective": "nll", "examples a step": 8, "number of processes": 1, "seed": 3}
FILES = {"model.safetensors": 4096, "optimizer.pt": 8192, "rng_state.pth": 500, "scheduler.pt": 300, "trainer_state.json": 900}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Files of random bytes under the names of real ones: only their bytes are looked at."""
    directory = tmp_path / "checkpoint-4"
    directory.mkdir()
    for number, (name, size) in enumerate(FILES.items()):
        (directory / name).write_bytes(bytes((i * 7 + number * 13 + i // 256) % 256 for i in range(size)))
    seal(directory, RUN)
    verify(directory, RUN)
    return directory


def changes(checkpoint: Path, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """(file, what it holds now): bytes of every file, bytes of the manifest, values in the manifest."""
    for number, name in enumerate((*FILES, MANIFEST)):
        for content in mutated_bytes((checkpoint / name).read_bytes(), seed + number, count):
            yield name, content
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for value in mutated_values(manifest, seed, 2 * count):
        try:
            yield MANIFEST, json.dumps(value).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):  # no JSON can hold it
            continue


def attempt(checkpoint: Path, content: tuple[str, bytes]) -> dict[str, bytes]:
    """Verify a copy of the checkpoint with one file changed, and return what a resume would read."""
    copy = checkpoint.with_name("copy") / checkpoint.name
    shutil.copytree(checkpoint, copy)
    try:
        (copy / content[0]).write_bytes(content[1])
        verify(copy, RUN)
        return {name: (copy / name).read_bytes() for name in FILES}
    finally:
        shutil.rmtree(copy.parent)


def fuzz(checkpoint: Path, outcomes: Callable[..., Any], seed: int, count: int) -> None:
    whole = {name: (checkpoint / name).read_bytes() for name in FILES}
    inputs = changes(checkpoint, seed, count)
    outcomes("checkpoint", inputs, lambda content: attempt(checkpoint, content), lambda _, result: result == whole)


def test_only_what_was_written_is_resumed_from(checkpoint: Path, outcomes: Callable[..., Any]) -> None:
    fuzz(checkpoint, outcomes, 11, 40)


@pytest.mark.slow
def test_only_what_was_written_is_resumed_from_many(checkpoint: Path, outcomes: Callable[..., Any]) -> None:
    fuzz(checkpoint, outcomes, 1_000, 500)
