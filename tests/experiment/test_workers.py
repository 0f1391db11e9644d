"""Processes that train students side by side: how they end, and that two never write one student."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import places
import pytest
import yaml
from conftest import command
from processes_under_test import PATIENCE_S, finish, start, stop, wait_for
from test_cli import flat

from tdistill.experiment.artefact import LOCK, MANIFEST

SEEDS = "train.seeds=[3, 4]"
CHECKPOINT = "checkpoints/checkpoint-20/tdistill.complete"


@pytest.fixture
def recipe(tiny_recipe: Path) -> Path:
    """A recipe whose roll-outs are complete, and whose students take long enough to be disturbed."""
    content = yaml.safe_load(tiny_recipe.read_text())
    del content["sft"]
    content["train"]["baselines"] = {}
    content["train"]["arguments"] |= {"max_steps": 300, "eval_steps": 300, "save_steps": 20, "load_best_model_at_end": False}
    tiny_recipe.write_text(yaml.safe_dump(content))
    assert command("rollout", tiny_recipe) == 0
    return tiny_recipe


def students(recipe: Path, *overrides: str) -> list[Path]:
    return [places.student(recipe, [SEEDS, *overrides], seed=seed) for seed in (3, 4)]


def holder(student: Path) -> int:
    return int(json.loads((student / LOCK).read_text())["pid"])


def eventually(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_command_and_the_same_command_goes_on(signum: int, recipe: Path) -> None:
    process = start("train", recipe, SEEDS, "--workers", 2)
    both = students(recipe)
    wait_for(process, lambda: all((student / CHECKPOINT).exists() for student in both))
    pids = [holder(student) for student in both]
    assert len({process.pid, *pids}) == 3
    stopped = stop(process, signum, group=signum == signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
    assert stopped.status == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert "Traceback" not in stopped.errors
    for pid in pids:
        eventually(lambda pid=pid: is_gone(pid))
    finish("train", recipe, SEEDS, "--workers", 2)
    undisturbed = f"output_dir={recipe.parent / 'undisturbed'}"
    finish("rollout", recipe, undisturbed)
    finish("train", recipe, SEEDS, undisturbed)
    for one, other in zip(both, students(recipe, undisturbed), strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_student_that_another_process_trains_is_not_trained_twice(recipe: Path) -> None:
    """A worker that outlives its command, as on a machine that hangs: the next command says who holds the student, and makes the other."""
    process = start("train", recipe, SEEDS, "--workers", 2)
    first, second = students(recipe)
    wait_for(process, lambda: (first / CHECKPOINT).exists() and (second / CHECKPOINT).exists())
    survivor = holder(first)
    os.kill(survivor, signal.SIGSTOP)
    process.kill()
    process.wait()
    try:
        again = start("train", recipe, SEEDS, "--workers", 2)
        errors = flat(again.communicate()[1].decode())
        assert again.returncode == 2
        assert f"{first} is in use by process {survivor}" in errors
        assert "1 of 2 were not made" in errors
        assert (second / MANIFEST).is_file()
        assert not (first / MANIFEST).exists()
    finally:
        os.kill(survivor, signal.SIGKILL)
    eventually(lambda: is_gone(survivor))
    finish("train", recipe, SEEDS)
    assert (first / MANIFEST).is_file()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_and_the_others_are_made(recipe: Path) -> None:
    process = start("train", recipe, SEEDS, "--workers", 2)
    first, second = students(recipe)
    wait_for(process, lambda: (first / CHECKPOINT).exists())
    os.kill(holder(first), signal.SIGKILL)
    errors = flat(process.communicate()[1].decode())
    assert process.returncode == 2
    assert "distilled, seed 3: its process was ended by SIGKILL" in errors
    assert (second / MANIFEST).is_file()
    finish("train", recipe, SEEDS)
