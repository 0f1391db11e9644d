"""Through the command line: however a step's batch is cut over micro-batches, processes and shards, loss and gradient norm are the same."""

import json
import subprocess
import sys
from pathlib import Path

import conftest
import launching
import places
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tdistill.cli import main
from tdistill.data.dataset import RolloutDataset

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
FIVE_DIGITS = 1e-5
ONE_PROCESS = {
    "8x1": ["train.arguments.per_device_train_batch_size=8"],
    "4x2": ["train.arguments.per_device_train_batch_size=4", "train.arguments.gradient_accumulation_steps=2"],
    "1x8": ["train.arguments.per_device_train_batch_size=1", "train.arguments.gradient_accumulation_steps=8"],
    "checkpointing": ["train.arguments.per_device_train_batch_size=8", "train.arguments.activation_checkpointing=true"],
}
# Runs the command line; in the second step one of the processes comes to an end.
DYING = """
import os
from tdistill.cli import main
from tdistill.runtime.errors import TrainingError
from tdistill.training.trainer import DistillTrainer

step = DistillTrainer.training_step

def dying(self, *args, **kwargs):
    if self.state.global_step == 1 and self.args.process_index == {process}:
        {how}
    return step(self, *args, **kwargs)

DistillTrainer.training_step = dying
main()
"""
HALF = ["train.arguments.per_device_train_batch_size=4"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """Roll-outs and SFT done, answers of different lengths."""
    directory = tmp_path_factory.mktemp("invariant")
    content = conftest.tiny_recipe_dict(tiny_teacher, directory)
    content["rollout"]["max_completion_length"] = 40
    content["train"]["baselines"] = {}
    # Two whole batches: a last one that two processes can't share evenly would be filled up with examples seen before.
    lines = [json.dumps({"prompt": f"question {i}" + "?" * (i % 5)}) for i in range(16)]
    (directory / "train.jsonl").write_text("\n".join(lines) + "\n")
    content["train"]["arguments"] |= {"eval_steps": 4, "save_steps": 4, "lr_scheduler_type": "constant"}
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    for stage in ("rollout", "sft"):
        command(stage, path)
    data = RolloutDataset(places.rollout(path))
    assert len({len(data[i]["response_ids"]) for i in range(16)}) > 1, "equal lengths would hide a mean of means"
    return path


def command(*argv: object) -> None:
    before, sys.argv = sys.argv, ["tdistill", *map(str, argv)]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    assert not stop.value.code


def student(recipe: Path, overrides: list[str]) -> Path:
    return places.student(recipe, overrides)


def trajectory(directory: Path) -> list[tuple[float, float]]:
    history = json.loads((directory / "log_history.json").read_text())["history"]
    return [(entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def reference(recipe: Path) -> Path:
    command("train", recipe, *ONE_PROCESS["8x1"])
    found = student(recipe, ONE_PROCESS["8x1"])
    steps = trajectory(found)
    assert len(steps) == 4
    assert min(norm for _, norm in steps) > 1e-3
    return found


def assert_same(found: Path, reference: Path) -> None:
    for got, want in zip(trajectory(found), trajectory(reference), strict=True):
        assert got == pytest.approx(want, rel=FIVE_DIGITS)
    mine, theirs = (load_file(d / "model.safetensors") for d in (found, reference))
    assert mine.keys() == theirs.keys()
    # Adam divides by the root of tiny second moments: where a gradient is noise, so is its step.
    assert max(float((mine[k] - theirs[k]).abs().max()) for k in mine) < 2e-3


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode != 0
    assert message in " ".join((done.stdout + done.stderr).split())
    assert "exitcode  : 2" in done.stderr
    assert "[rank" not in done.stderr, "a traceback"


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["4x2", "1x8", "checkpointing"])
def test_one_process(cut: str, recipe: Path, reference: Path) -> None:
    command("train", recipe, *ONE_PROCESS[cut])
    assert_same(student(recipe, ONE_PROCESS[cut]), reference)


@pytest.mark.slow
def test_two_processes_with_ddp(recipe: Path, reference: Path) -> None:
    launching.with_ddp("train", recipe, *HALF)
    assert_same(student(recipe, HALF), reference)


@pytest.mark.slow
def test_fsdp_on_cpu_is_refused_since_accelerate_would_make_ddp_of_it(recipe: Path) -> None:
    asked = [*HALF, "train.arguments.learning_rate=0.002"]
    done = launching.launch(["-m", "tdistill", "train", str(recipe), *asked], launching.environment("fsdp2"))
    assert_refused(done, "FSDP was asked for, but accelerate shards on GPUs only, and this run is on cpu")
    assert not list(student(recipe, asked).rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), 9)", "raise TrainingError('lost in one process')"])
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_dies_or_fails_ends_the_others(process: int, how: str, recipe: Path, tmp_path: Path) -> None:
    program = tmp_path / "dying.py"
    program.write_text(DYING.format(process=process, how=how))
    asked = [*HALF, f"train.arguments.learning_rate=0.00{3 + process}"]
    done = launching.launch([str(program), "train", str(recipe), *asked], launching.environment("ddp"), timeout_s=120)
    assert done.returncode != 0
    label = "" if process == 0 else " in process 1 of 2"
    assert ("kill" in how) or f"tdistill: error{label}: lost in one process" in done.stderr
    assert not (student(recipe, asked) / "model.safetensors").exists()


@pytest.mark.slow
def test_workers_are_refused_in_two_processes(recipe: Path) -> None:
    asked = ["train.arguments.learning_rate=2e-3", "--workers", "2"]
    done = launching.launch(["-m", "tdistill", "train", str(recipe), *asked], launching.environment("ddp"), timeout_s=120)
    assert done.returncode != 0
    assert "leave --workers out, or start it without `accelerate launch`" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_roll_outs_are_refused_in_two_processes(recipe: Path) -> None:
    done = launching.launch(["-m", "tdistill", "run", str(recipe), "rollout.temperature=0.9"], launching.environment("ddp"))
    assert_refused(done, "`rollout` runs in one process, and this is one of 2")


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_the_shipped_configurations_parse(name: str) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes == 2
    assert config.mixed_precision == "bf16"
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
