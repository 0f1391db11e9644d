"""A checkpoint is whole or refused: every file of it is verified before a run goes on from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch

from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError, TrainingError
from tdistill.training.checkpoints import (
    MANIFEST,
    drop_checkpoints,
    drop_unfinished,
    find_checkpoints,
    last_checkpoint,
)
from tdistill.training.fit import training_arguments
from tdistill.training.trainer import DistillTrainer

OBJECTIVE = bind("csil", target_network=True, anchor="tail")
FILES = {
    "config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "target_network.safetensors",
    "tokenizer.json", "tokenizer_config.json", "trainer_state.json", "value_head.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def trainer(world: small_runs.World, directory: Path, objective: Any = OBJECTIVE, seed: int = 3, **given: Any) -> DistillTrainer:
    args = training_arguments({**small_runs.EVERY_TWO, **small_runs.CONSTANT, "save_total_limit": None, **given}, directory, seed)
    return DistillTrainer(world.student(), args, objective, world.data, world.data, world.tokenizer)


@pytest.fixture(scope="module")
def written(world: small_runs.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written")
    trainer(world, directory).train()
    return directory


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


def test_the_manifest_names_every_file(run: Path) -> None:
    for checkpoint in find_checkpoints(run):
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        assert set(manifest["files"]) == FILES
        assert manifest["step"] == int(checkpoint.name[11:])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "lost": Path.unlink,
    "a bit flipped": flip,
    "emptied": lambda path: path.write_bytes(b"") and None,
}


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_what_to_do(damage: str, name: str, world: small_runs.World, run: Path) -> None:
    DAMAGES[damage](run / "checkpoint-6" / name)
    again = trainer(world, run)
    before = [p.clone() for p in again.model.parameters()]
    advice = f"Delete checkpoint-6 to go on from the checkpoint before it, or all checkpoints in {run} to start anew"
    with pytest.raises(TrainingError, match=rf"checkpoint-6 is damaged: {name} is .*\. {advice}"):
        again.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(before, again.model.parameters(), strict=True))


def test_an_edited_step_is_found(world: small_runs.World, run: Path) -> None:
    path = run / "checkpoint-6" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": 4}))
    with pytest.raises(TrainingError, match="trainer_state.json is not as it was written"):
        trainer(world, run).train(resume_from_checkpoint=True)
    shutil.rmtree(run / "checkpoint-6")
    (run / "checkpoint-4").rename(run / "checkpoint-6")
    with pytest.raises(TrainingError, match="it is of step 4"):
        trainer(world, run).train(resume_from_checkpoint=True)


def test_the_advice_helps(world: small_runs.World, run: Path, written: Path) -> None:
    flip(run / "checkpoint-6" / "optimizer.pt")
    shutil.rmtree(run / "checkpoint-6")
    again = trainer(world, run)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    small_runs.assert_same_weights(run / "checkpoint-6", written / "checkpoint-6")


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "scaler.pt", "optimizer.bin", "rng_state_1.pth"])
def test_a_file_that_a_resume_would_read_may_not_be_added(name: str, world: small_runs.World, run: Path) -> None:
    (run / "checkpoint-6" / name).write_bytes(b"x")
    with pytest.raises(TrainingError, match=f"{name} was not in it when it was written"):
        trainer(world, run).train(resume_from_checkpoint=True)


def test_what_a_callback_adds_is_no_damage(world: small_runs.World, run: Path) -> None:
    (run / "checkpoint-6" / "notes.txt").write_text("mine")
    (run / "checkpoint-6" / "samples").mkdir()
    (run / "checkpoint-6" / "samples" / "a.json").write_text("{}")
    again = trainer(world, run)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"step": 6}', b'{"step": 6, "run": {}, "files": {}}', b'{"step": 6, "run": {}, "files": {"a": 1}}',
     b'{"step": 6, "run": {}, "files": {"../../../../etc/passwd": "00"}}', b"\xff\xfe", b"[" * 5000],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(content: bytes, world: small_runs.World, run: Path) -> None:
    (run / "checkpoint-6" / MANIFEST).write_bytes(content)
    with pytest.raises(TrainingError, match="Delete checkpoint-6"):
        trainer(world, run).train(resume_from_checkpoint=True)


def test_a_damaged_best_checkpoint_is_refused_at_the_start_and_at_the_end(world: small_runs.World, tmp_path: Path) -> None:
    whole = trainer(world, tmp_path / "best", small_runs.NLL, learning_rate=3.0)
    whole.train()
    best = f"checkpoint-{whole.state.best_global_step}"
    assert best != "checkpoint-6"
    flip(tmp_path / "best" / best / "model.safetensors")
    with pytest.raises(TrainingError, match=rf"{best} is damaged: model"):
        trainer(world, tmp_path / "best", small_runs.NLL, learning_rate=3.0).train(resume_from_checkpoint=True)
    with pytest.raises(TrainingError, match=rf"{best} is damaged: model"):
        whole._load_best_model()


def test_a_checkpoint_that_was_cut_short_is_no_checkpoint(world: small_runs.World, run: Path) -> None:
    (run / "checkpoint-6" / MANIFEST).unlink()
    assert last_checkpoint(run) == run / "checkpoint-4"
    with pytest.raises(TrainingError, match=r"checkpoint-6 has no tdistill\.complete"):
        trainer(world, run).train(resume_from_checkpoint=str(run / "checkpoint-6"))
    (run / "checkpoint-mine").mkdir()
    (run / "checkpoint-5").write_text("a file")
    drop_unfinished(run)
    assert {path.name for path in run.iterdir()} == {"checkpoint-2", "checkpoint-4", "checkpoint-mine", "checkpoint-5"}
    drop_checkpoints(run)
    assert {path.name for path in run.iterdir()} == {"checkpoint-mine", "checkpoint-5"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": bind("csil", target_network=True, anchor="tail", gamma=0.9)}, "its objective is"),
        ({"seed": 4}, "its seed is 3, this one's is 4"),
        ({"per_device_train_batch_size": 2}, "its examples a step is 4, this one's is 2"),
        ({"max_steps": -1, "num_train_epochs": 1.5}, "num_train_epochs=2.*resume|is of a run with"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(given: dict[str, Any], message: str, world: small_runs.World, run: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        trainer(world, run, **given).train(resume_from_checkpoint=True)


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused(world: small_runs.World, run: Path) -> None:
    with pytest.raises(TrainingError, match="max_steps=6, this one has 4"):
        trainer(world, run, max_steps=4).train(resume_from_checkpoint=True)


def test_an_epoch_of_fewer_examples_is_another_run(world: small_runs.World, tmp_path: Path) -> None:
    epochs = {"max_steps": -1, "num_train_epochs": 2}
    trainer(world, tmp_path, small_runs.NLL, **epochs).train()
    shorter = trainer(world, tmp_path, small_runs.NLL, **epochs, dataloader_drop_last=True)
    with pytest.raises(TrainingError, match="steps in all=6, this one has 4"):
        shorter.train(resume_from_checkpoint=True)


def test_a_directory_that_stands_in_the_way_is_written_anew(world: small_runs.World, run: Path, written: Path) -> None:
    """A run that begins anew in the directory of another must not mix its files with old ones."""
    (run / "checkpoint-2" / "model-00009-of-00009.safetensors").write_bytes(b"old")
    trainer(world, run).train()
    small_runs.assert_same_weights(run / "checkpoint-2", written / "checkpoint-2")


def test_checkpoints_of_weights_alone_are_refused(world: small_runs.World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_only_model=True writes checkpoints that no run can go on from"):
        trainer(world, tmp_path, save_only_model=True)
    trainer(world, tmp_path, save_only_model=True, save_strategy="no")


def test_fit_refuses_a_damaged_checkpoint(world: small_runs.World, tmp_path: Path) -> None:
    world.train(tmp_path / "whole", keep_checkpoints=True)
    killed = small_runs.left_by_a_kill(tmp_path / "whole", tmp_path / "killed", 4)
    (killed / "checkpoints" / "checkpoint-4" / "scheduler.pt").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint-4 is damaged: scheduler.pt is missing"):
        world.train(killed)
