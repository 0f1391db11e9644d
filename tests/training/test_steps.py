"""How many steps a run takes: the number that transformers' Trainer takes, whatever is mixed into the data."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import places
import pytest
import small_runs
import yaml
from accelerate.data_loader import BatchSamplerShard
from conftest import command
from torch.utils.data import BatchSampler
from transformers import TrainingArguments

from tdistill.data.collate import DistillCollator
from tdistill.data.mixed import MixedDataset, RunLength
from tdistill.recipe.schema import LmConfig, OnPolicyConfig
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.progress import console
from tdistill.training.fit import training_arguments
from tdistill.training.log import read_history
from tdistill.training.schedule import steps_per_epoch, total_steps
from tdistill.training.trainer import DistillTrainer


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def arguments(directory: Path, **given: Any) -> TrainingArguments:
    quiet = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return TrainingArguments(str(directory), **{**quiet, **given})


@pytest.mark.parametrize("epochs", [0.5, 1, 2.5, 3])
@pytest.mark.parametrize(("batch", "accumulation"), [(3, 1), (4, 2), (2, 3), (10, 1), (16, 1)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_are_counted_as_the_trainer_counts_them(
    epochs: float, batch: int, accumulation: int, drop_last: bool, world: small_runs.World, tmp_path: Path
) -> None:
    given = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "dataloader_drop_last": drop_last}
    args = arguments(tmp_path, num_train_epochs=epochs, **given)
    if drop_last and batch > 10:
        with pytest.raises(ConfigError, match="dataloader_drop_last leaves no batch: 10 training examples"):
            DistillTrainer(world.student(), args, small_runs.NLL, world.data, None, world.tokenizer)
        return
    trainer = DistillTrainer(world.student(), args, small_runs.NLL, world.data, None, world.tokenizer)
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert (steps_per_epoch(args, 10), total_steps(args, 10)) == (values[1], values[-1])


class OfSeveral(TrainingArguments):
    """Arguments as a process among several has them."""

    processes = 1

    @property
    def world_size(self) -> int:
        return self.processes


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_of_several_processes_are_those_of_accelerate(processes: int, drop_last: bool, tmp_path: Path) -> None:
    for examples in range(1, 30):
        for batch in (1, 2, 3, 5):
            args = OfSeveral(str(tmp_path), per_device_train_batch_size=batch, dataloader_drop_last=drop_last, use_cpu=True)
            args.processes = processes
            want = len(BatchSamplerShard(BatchSampler(range(examples), batch, drop_last), processes, 0))
            if want:
                assert steps_per_epoch(args, examples) == want
            else:
                with pytest.raises(ConfigError, match="leaves no batch"):
                    steps_per_epoch(args, examples)


def course(directory: Path) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    """(step, whole epochs, rate) of every training log, and (step, whole epochs) of every validation.

    The part of an epoch differs where its last step accumulates fewer batches: a mixture's steps are all whole.
    """
    history = read_history(directory)["history"]
    return (
        [(e["step"], int(e["epoch"]), e["learning_rate"]) for e in history if "loss" in e],
        [(e["step"], int(e["epoch"])) for e in history if "eval_loss" in e],
    )


SCHEDULES: dict[str, dict[str, Any]] = {
    "three epochs": {"num_train_epochs": 3},
    "accumulated": {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "an epoch and a half, validated each epoch": {"num_train_epochs": 1.5, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "half an epoch": {"num_train_epochs": 0.5, "eval_steps": 1, "save_steps": 1},
    "fractions": {"num_train_epochs": 2, "eval_steps": 0.5, "save_steps": 0.5, "logging_steps": 0.25},
    "logged each epoch": {"num_train_epochs": 2, "logging_strategy": "epoch"},
    "steps that end within an epoch": {"max_steps": 5},
    "whole batches only": {"num_train_epochs": 2, "dataloader_drop_last": True},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_mixture_trains_as_long_as_the_plain_run(
    name: str, world: small_runs.World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 200)
    given = {"max_steps": -1, "lr_scheduler_type": "linear", "per_device_train_batch_size": 4, **SCHEDULES[name]}
    for kind in ("plain", "lm", "own text", "both"):
        world.train(tmp_path / kind, kind, given)
    plain = course(tmp_path / "plain")
    assert plain[0]
    assert plain[1]
    for kind in ("lm", "own text", "both"):
        assert course(tmp_path / kind) == plain
    args = training_arguments(given, tmp_path, 0)
    total = total_steps(args, 10)
    assert plain[0][-1][0] == total == {0.5: 2, 1.5: 5, 2: 4 if "drop" in str(given) else 6, 3: 9}.get(given.get("num_train_epochs", 0), 5)
    assert capsys.readouterr().err.count(f"{total}/{total}") >= 4, "the bar of every run ends where the run does"


def test_every_example_is_read_once_and_in_order(world: small_runs.World, tmp_path: Path) -> None:
    data = MixedDataset(world.data, OnPolicyConfig(lmbda=0.0), RunLength(8, 4), 0, corpus=world.corpus)
    read: list[int] = []

    class Remembering(DistillCollator):
        def __call__(self, examples: Any) -> Any:
            read.extend(e["row"] for e in examples)
            return super().__call__(examples)

    args = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    lm = LmConfig(corpus=str(world.corpus_file), lm_coef=0.5)
    trainer = DistillTrainer(world.student(), args, small_runs.NLL, data, None, world.tokenizer, lm=lm, data_collator=Remembering())
    trainer.train()
    assert trainer.state.global_step == 8, "as many as the data set has, though the arguments say three epochs"
    assert read == list(range(32))
    assert trainer.state.epoch == pytest.approx(8 / 3), "an epoch is one pass over ten responses, four a step"


def test_the_callers_arguments_stay_as_they_are(world: small_runs.World, tmp_path: Path) -> None:
    args = arguments(tmp_path, per_device_train_batch_size=4, load_best_model_at_end=False)
    before = args.to_dict()
    data = MixedDataset(world.data, OnPolicyConfig(lmbda=0.0), RunLength(2, 4), 0)
    trainer = DistillTrainer(world.student(), args, small_runs.NLL, data, world.data, world.tokenizer)
    trainer.train()
    assert args.to_dict() == before
    assert trainer.args.max_steps == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_steps": 7}, "holds 2 steps, but max_steps is 7"),
        ({"per_device_train_batch_size": 3}, "4 examples a step, but the arguments ask for 3"),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, "ask for 8"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy=group_by_length has no place"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
    ],
)
def test_arguments_that_contradict_a_mixed_data_set_are_refused(
    given: dict[str, Any], message: str, world: small_runs.World, tmp_path: Path
) -> None:
    data = MixedDataset(world.data, OnPolicyConfig(lmbda=0.0), RunLength(2, 4), 0)
    args = arguments(tmp_path, **{"per_device_train_batch_size": 4, **given})
    with pytest.raises(ConfigError, match=message):
        DistillTrainer(world.student(), args, small_runs.NLL, data, None, world.tokenizer)


def test_validation_reads_every_example_though_training_drops_short_batches(world: small_runs.World, tmp_path: Path) -> None:
    found = []
    for drop, size in ((False, 3), (True, 3), (True, 64)):
        args = arguments(tmp_path, per_device_train_batch_size=2, per_device_eval_batch_size=size, dataloader_drop_last=drop)
        trainer = DistillTrainer(world.student(), args, small_runs.NLL, world.data, world.data, world.tokenizer)
        found.append(trainer.evaluate())
        assert trainer.args.dataloader_drop_last is drop
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_a_mixture_as_long_as_the_plain_run(tiny_recipe: Path) -> None:
    """Three epochs of ten prompts, four a step: nine steps, of which each process reads its half."""
    content = yaml.safe_load(tiny_recipe.read_text())
    corpus = tiny_recipe.parent / "corpus.txt"
    corpus.write_text("\n\n".join(f"Paragraph {i} of the corpus." for i in range(40)))
    content["data"]["max_train_prompts"] = 10
    content["train"]["baselines"] = {}
    arguments = content["train"]["arguments"]
    del arguments["max_steps"]
    arguments |= {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}
    tiny_recipe.write_text(yaml.safe_dump(content))
    assert command("rollout", tiny_recipe) == 0
    assert command("sft", tiny_recipe) == 0
    found = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29621", "-m", "tdistill"]
    for lm in ("train.lm=null", f"train.lm={{corpus: {corpus}, window: 16}}"):
        done = subprocess.run([*launcher, "train", tiny_recipe, lm], env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(course(places.student(tiny_recipe, [lm])))
    assert found[0] == found[1]
    assert found[0][0][-1][0] == 9
