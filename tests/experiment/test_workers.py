"""Processes that train students side by side: how they end, and that two never write one student."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import places
import pytest
import yaml
from conftest import command, tiny_recipe_dict
from runtime.processes_under_test import PATIENCE_S, start, stop, wait_for
from test_cli import flat

from tdistill.experiment.artefact import LOCK, MANIFEST

CHECKPOINT = "checkpoints/checkpoint-*/tdistill.complete"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """The recipe of two students that one process trained one after the other. They take long enough to be disturbed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    content = tiny_recipe_dict(tiny_teacher, directory)
    del content["sft"]
    content["train"] |= {"baselines": {}, "seeds": [3, 4]}
    content["train"]["arguments"] |= {"max_steps": 240, "eval_steps": 240, "save_steps": 20, "load_best_model_at_end": False}
    recipe = directory / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content))
    for stage in ("rollout", "train"):
        assert command(stage, recipe) == 0
    return recipe


@pytest.fixture
def recipe(undisturbed: Path, tmp_path: Path) -> Path:
    """The same recipe, whose students are not trained yet."""
    content = yaml.safe_load(undisturbed.read_text())
    root = shutil.copytree(content["output_dir"], tmp_path / "run", symlinks=True, ignore=shutil.ignore_patterns("students", "latest"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | {"output_dir": str(root)}))
    return path


def students(recipe: Path) -> list[Path]:
    return [places.student(recipe, seed=seed) for seed in (3, 4)]


def has_checkpoint(student: Path) -> bool:
    return any(student.glob(CHECKPOINT))


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
def test_workers_end_with_the_command_and_the_same_command_goes_on(signum: int, recipe: Path, undisturbed: Path) -> None:
    both = students(recipe)
    process = start("train", recipe, "--workers", 2)
    wait_for(process, lambda: all(has_checkpoint(student) for student in both))
    pids = [holder(student) for student in both]
    assert len({process.pid, *pids}) == 3
    stopped = stop(process, signum, group=signum == signal.SIGINT)  # Ctrl-C reaches all processes of a terminal
    assert stopped.status == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert "Traceback" not in stopped.errors
    for pid in pids:
        eventually(lambda pid=pid: is_gone(pid))
    assert command("train", recipe, "--workers", 2) == 0
    for one, other in zip(both, students(undisturbed), strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_student_that_another_process_trains_is_not_trained_twice(recipe: Path) -> None:
    """A worker that outlives its command, as on a machine that hangs: the next command says who holds the student, and makes the other."""
    first, second = students(recipe)
    process = start("train", recipe, "--workers", 2)
    wait_for(process, lambda: has_checkpoint(first) and has_checkpoint(second))
    survivor = holder(first)
    os.kill(survivor, signal.SIGSTOP)
    process.kill()
    process.wait()
    try:
        again = start("train", recipe, "--workers", 2)
        errors = flat(again.communicate()[1].decode())
        assert again.returncode == 2
        assert f"{first} is in use by process {survivor}" in errors
        assert "1 of 2 were not made" in errors
        assert (second / MANIFEST).is_file()
        assert not (first / MANIFEST).exists()
    finally:
        os.kill(survivor, signal.SIGKILL)
    eventually(lambda: is_gone(survivor))
    assert command("train", recipe) == 0
    assert (first / MANIFEST).is_file()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_and_the_others_are_made(recipe: Path) -> None:
    first, second = students(recipe)
    process = start("train", recipe, "--workers", 2)
    wait_for(process, lambda: has_checkpoint(first))
    os.kill(holder(first), signal.SIGKILL)
    errors = flat(process.communicate()[1].decode())
    assert process.returncode == 2
    assert "distilled, seed 3: its process was ended by SIGKILL" in errors
    assert (second / MANIFEST).is_file()
    assert command("train", recipe) == 0
