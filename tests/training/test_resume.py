"""A run that is killed and goes on: the same steps, the same student, bit by bit, wherever the kill was."""

import json
import shutil
from pathlib import Path
from typing import Any

import places
import pytest
import small_runs
import torch
from conftest import command
from transformers import EarlyStoppingCallback, TrainerCallback

from tdistill.experiment import artefact
from tdistill.experiment.graph import make
from tdistill.experiment.students import sft, students
from tdistill.recipe.schema import HeadConfig, MonitorConfig
from tdistill.runtime.errors import TrainingError
from tdistill.training.checkpoints import find_checkpoints, last_checkpoint
from tdistill.training.fit import training_arguments
from tdistill.training.log import read_history
from tdistill.training.trainer import DistillTrainer

TARGET = {"name": "csil", "target_network": True, "anchor": "tail"}


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def refuse_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a training step fail; validations pass."""

    def training_step(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(DistillTrainer, "training_step", training_step)


def counted(directory: Path, step: int) -> set[float]:
    """The numbers of steps that Adam has counted."""
    state = torch.load(directory / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    return {float(s["step"]) for s in state["state"].values()}


def losses(directory: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in read_history(directory)["history"] if "loss" in e]


GROUPED = "grouped by length"  # a mixture is read in order
LENGTHS: dict[str, dict[str, Any]] = {
    "steps": {"max_steps": 5},
    "epochs": {"max_steps": -1, "num_train_epochs": 2},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    GROUPED: {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "max_steps": 8},
}


@pytest.mark.parametrize(
    ("kind", "lengths"), [(kind, name) for kind in ("plain", "both") for name in LENGTHS if (kind, name) != ("both", GROUPED)]
)
def test_a_kill_after_any_checkpoint_changes_nothing(kind: str, lengths: str, world: small_runs.World, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    keep = {"save_total_limit": None, **LENGTHS[lengths]}
    world.train(whole, kind, keep, keep_checkpoints=True)
    saved = [int(path.name[11:]) for path in find_checkpoints(whole / "checkpoints")]
    assert len(saved) >= 3
    for step in saved:
        killed = small_runs.left_by_a_kill(whole, tmp_path / str(step), step)
        world.train(killed, kind, keep, keep_checkpoints=True)
        small_runs.assert_same_weights(killed, whole)
        assert losses(killed) == losses(whole)
        assert counted(killed, saved[-1]) == {float(saved[-1])}
        assert find_checkpoints(killed / "checkpoints")[-1].name == f"checkpoint-{saved[-1]}", "there was no step after the last"


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_run_draws_the_tokens_that_the_whole_run_drew(accumulated: int, world: small_runs.World, tmp_path: Path) -> None:
    """The head ``sampled``: bit by bit, although the draw of every batch is another one."""
    whole, settings = tmp_path / "whole", {"objective": "reverse_kl", "head": HeadConfig(name="sampled", samples=24)}
    arguments = {"save_total_limit": None, "per_device_train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
    world.train(whole, "plain", arguments, keep_checkpoints=True, **settings)
    killed = small_runs.left_by_a_kill(whole, tmp_path / "killed", 2)
    world.train(killed, "plain", arguments, keep_checkpoints=True, **settings)
    small_runs.assert_same_weights(killed, whole)
    exact = tmp_path / "exact"
    world.train(exact, "plain", arguments, **{**settings, "head": HeadConfig()})
    with pytest.raises(AssertionError):
        small_runs.assert_same_weights(exact, whole)


@pytest.mark.parametrize("best", ["best loaded", "last kept"])
def test_a_run_killed_before_its_student_is_saved_takes_no_step_however_often(
    best: str, world: small_runs.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, last = tmp_path / "whole", {"max_steps": 5, "load_best_model_at_end": best == "best loaded", "learning_rate": 3.0}
    world.train(whole, arguments=last, objective=TARGET, keep_checkpoints=True)
    killed = small_runs.left_by_a_kill(whole, tmp_path / "killed", 5)
    refuse_steps(monkeypatch)
    for _ in range(3):
        world.train(killed, arguments=last, objective=TARGET, keep_checkpoints=True)
        small_runs.assert_same_weights(killed, whole)
        assert read_history(killed)["validation"] == read_history(whole)["validation"]
        assert losses(killed) == losses(whole)
        assert counted(killed, 5) == {5.0}


@pytest.mark.parametrize("strategy", [{}, {"max_steps": -1, "num_train_epochs": 9, "eval_strategy": "epoch", "save_strategy": "epoch"}])
def test_early_stopping_goes_on_counting_after_a_kill(
    strategy: dict[str, Any], world: small_runs.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = {"max_steps": 20, "learning_rate": 3.0, "save_total_limit": None, **strategy}
    whole = tmp_path / "whole"
    world.train(whole, arguments=worse, monitor=MonitorConfig(early_stopping_patience=2), keep_checkpoints=True)
    history = read_history(whole)
    stopped = max(e["step"] for e in history["history"] if "eval_loss" in e)
    saved = [int(path.name[11:]) for path in find_checkpoints(whole / "checkpoints")]
    assert stopped == saved[-1] < (27 if strategy else 20), "it stopped early, and its last checkpoint is there"
    assert saved.index(history["best_step"]) == len(saved) - 3
    for step in saved:
        killed = small_runs.left_by_a_kill(whole, tmp_path / str(step), step)
        if step == stopped:
            refuse_steps(monkeypatch)
        world.train(killed, arguments=worse, monitor=MonitorConfig(early_stopping_patience=2), keep_checkpoints=True)
        small_runs.assert_same_weights(killed, whole)
        assert losses(killed) == losses(whole)
        assert read_history(killed)["best_step"] == history["best_step"]


def trainer(world: small_runs.World, directory: Path, *callbacks: TrainerCallback, **given: Any) -> DistillTrainer:
    args = training_arguments({**small_runs.EVERY_TWO, **small_runs.CONSTANT, **given}, directory, 3)
    return DistillTrainer(world.student(), args, small_runs.NLL, world.data, world.data, world.tokenizer, callbacks=list(callbacks))


def test_a_validation_that_a_kill_left_out_is_made_up_for(world: small_runs.World, tmp_path: Path) -> None:
    """Saved by steps, validated by epochs: a checkpoint at the end of an epoch is written before the epoch's validation."""
    given = {"max_steps": 9, "save_steps": 3, "eval_strategy": "epoch", "load_best_model_at_end": False, "save_total_limit": None}
    whole = trainer(world, tmp_path / "whole", **given)
    whole.train()

    def validated(run: DistillTrainer) -> list[tuple[int, float]]:
        return [(e["step"], e["eval_loss"]) for e in run.state.log_history if "eval_loss" in e]

    assert [step for step, _ in validated(whole)] == [3, 6, 9]
    for step in (3, 6, 9):  # after the last one no epoch is left to run
        again = trainer(world, tmp_path / f"again-{step}", **given)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert validated(again) == validated(whole)
        assert again.state.best_global_step == whole.state.best_global_step


def test_true_resumes_from_the_newest_whole_checkpoint(world: small_runs.World, tmp_path: Path) -> None:
    first = trainer(world, tmp_path / "out")
    first.train()
    (tmp_path / "out" / "checkpoint-6" / "tdistill.complete").unlink()  # as a kill while it is written leaves it
    (tmp_path / "out" / "checkpoint-best").mkdir()
    second = trainer(world, tmp_path / "out")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    assert [e["step"] for e in second.state.log_history if "loss" in e] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(TrainingError, match="There is no whole checkpoint in .*: leave resume_from_checkpoint out"):
        trainer(world, tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_moved_run_finds_its_best_checkpoint_again(world: small_runs.World, tmp_path: Path) -> None:
    given = {"learning_rate": 3.0, "save_total_limit": None}
    whole = trainer(world, tmp_path / "whole", **given)
    whole.train()
    assert whole.state.best_global_step < 6
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    again = trainer(world, tmp_path / "moved", **given)
    again.train(resume_from_checkpoint=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    best = f"checkpoint-{whole.state.best_global_step}"
    shutil.rmtree(tmp_path / "moved" / best)
    with pytest.raises(TrainingError, match=f"names {best} as the best so far, which is not beside it"):
        trainer(world, tmp_path / "moved", **given).train(resume_from_checkpoint=True)


def test_the_best_is_loaded_though_it_was_validated_between_two_saves(world: small_runs.World, tmp_path: Path) -> None:
    run = trainer(world, tmp_path / "out", eval_steps=1, save_steps=3, learning_rate=3.0)
    run.train()
    validated = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = min(validated, key=lambda step: validated[step])
    assert best % 3
    assert run.state.best_global_step == best
    assert run.evaluate()["eval_loss"] == pytest.approx(validated[best], rel=1e-6)


def test_a_resumed_run_does_not_validate_at_its_start_again(world: small_runs.World, tmp_path: Path) -> None:
    stopping = EarlyStoppingCallback(1)
    given = {"eval_on_start": True, "learning_rate": 3.0, "save_total_limit": None}
    whole = trainer(world, tmp_path / "out", EarlyStoppingCallback(1), **given)
    whole.train()
    again = trainer(world, tmp_path / "again", stopping, **given)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    steps = [[e["step"] for e in run.state.log_history if "eval_loss" in e] for run in (whole, again)]
    assert steps[0] == steps[1]
    assert again.args.eval_on_start


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_there_is_a_whole_checkpoint_at_every_moment(limit: int, world: small_runs.World, tmp_path: Path) -> None:
    """Older ones go only once the new one is on the disk."""
    seen: list[Path | None] = []

    class Looking(DistillTrainer):
        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            seen.append(last_checkpoint(Path(self.args.output_dir)))
            super()._save_optimizer_and_scheduler(output_dir)

    given = {**small_runs.EVERY_TWO, **small_runs.CONSTANT, "save_total_limit": limit, "load_best_model_at_end": False, "max_steps": 8}
    args = training_arguments(given, tmp_path, 3)
    run = Looking(world.student(), args, small_runs.NLL, world.data, world.data, world.tokenizer)
    run.train()
    assert [path.name if path else None for path in seen] == [None, "checkpoint-2", "checkpoint-4", "checkpoint-6"]
    left = [path.name for path in find_checkpoints(tmp_path)]
    assert left == [f"checkpoint-{step}" for step in (2, 4, 6, 8)[-limit:]]
    assert json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())["global_step"] == 8


@pytest.mark.parametrize("stage", ["sft", "train"])
def test_a_student_keeps_its_checkpoints_until_it_has_its_mark(stage: str, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the last file of a student and its mark costs no step."""
    for before in ("rollout", "sft")[: 1 if stage == "sft" else 2]:
        assert command(before, tiny_recipe) == 0
    run = places.experiment(tiny_recipe)
    trained = sft(run) if stage == "sft" else students(run)[0]
    assert trained is not None
    student = trained.artefact.directory
    last = student / "checkpoints" / ("checkpoint-4" if stage == "sft" else "checkpoint-3")

    def killed(path: Path, *_: object) -> None:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patch:
        patch.setattr(artefact, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            make(run, trained.artefact)
    assert last.is_dir()
    assert (student / "model.safetensors").is_file()
    assert not (student / artefact.MANIFEST).exists()
    with monkeypatch.context() as patch:
        patch.setattr(DistillTrainer, "training_step", None)  # a step would fail
        make(run, trained.artefact)
        trained.artefact.after(student)
    assert (student / artefact.MANIFEST).is_file()
    assert not last.exists()


def test_a_resumed_run_answers_the_validation_prompts_once_a_validation(world: small_runs.World, tmp_path: Path) -> None:
    given = {"save_total_limit": None, "eval_on_start": True}
    world.train(tmp_path / "whole", arguments=given, monitor=MonitorConfig(log_completions=2), keep_checkpoints=True)
    wanted = (tmp_path / "whole" / "completions.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in wanted.splitlines()]
    assert steps == [0, 0, 2, 2, 4, 4, 6, 6, 6, 6]
    for step in (0, 2, 4, 6):
        killed = small_runs.left_by_a_kill(tmp_path / "whole", tmp_path / f"killed-{step}", step)
        killed.mkdir(exist_ok=True)
        (killed / "completions.jsonl").write_text(wanted + '{"step": 6, "prompt": "cut sho')
        world.train(killed, arguments=given, monitor=MonitorConfig(log_completions=2))
        assert (killed / "completions.jsonl").read_text() == wanted


def test_a_validation_moves_no_dropout(world: small_runs.World, tmp_path: Path) -> None:
    """A validation that a kill left out is made up for before the noise of the next step is restored."""
    run = trainer(world, tmp_path)
    before = torch.get_rng_state()
    run.evaluate()
    assert torch.equal(torch.get_rng_state(), before)
