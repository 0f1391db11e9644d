"""Through the command line: however a step's batch is cut over micro-batches, processes and shards, loss and gradient norm are the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from tdistill.cli import main
from tdistill.data.dataset import RolloutDataset
from tdistill.pipeline import Run
from tdistill.recipe import load_recipe

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
FIVE_DIGITS = 1e-5
ONE_PROCESS = {
    "8x1": ["train.arguments.per_device_train_batch_size=8"],
    "4x2": ["train.arguments.per_device_train_batch_size=4", "train.arguments.gradient_accumulation_steps=2"],
    "1x8": ["train.arguments.per_device_train_batch_size=1", "train.arguments.gradient_accumulation_steps=8"],
    "checkpointing": ["train.arguments.per_device_train_batch_size=8", "train.arguments.activation_checkpointing=true"],
}
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
    data = RolloutDataset(Run(load_recipe(path)).directory("rollout") / "train")
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


def launched(launcher: list[str], recipe: Path, overrides: list[str]) -> str:
    """The training stage in processes of its own; what they printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-m", *launcher, "-m", "tdistill.cli", "train", str(recipe), *overrides]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def student(recipe: Path, overrides: list[str]) -> Path:
    return Run(load_recipe(recipe, overrides)).directory("train") / "distilled"


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


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["4x2", "1x8", "checkpointing"])
def test_one_process(cut: str, recipe: Path, reference: Path) -> None:
    command("train", recipe, *ONE_PROCESS[cut])
    assert_same(student(recipe, ONE_PROCESS[cut]), reference)


@pytest.mark.slow
def test_two_processes_with_ddp(recipe: Path, reference: Path) -> None:
    launched(["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"], recipe, HALF)
    assert_same(student(recipe, HALF), reference)


@pytest.mark.slow
def test_two_processes_with_fsdp2(recipe: Path, reference: Path, tmp_path: Path) -> None:
    found = student(recipe, HALF)
    if (found.parent / "stage.json").exists():  # DDP has left the same settings' student
        found.parent.rename(tmp_path / "ddp")
    launched([*sharded(tmp_path), "--main_process_port", "29612"], recipe, HALF)
    assert_same(found, reference)


@pytest.mark.slow
def test_action_values_which_read_the_output_embeddings_with_fsdp2(recipe: Path, tmp_path: Path) -> None:
    objective = "train.objective={name: mean_actor_critic, gamma: 0.9}"
    whole, half = ([*cut, objective] for cut in (ONE_PROCESS["8x1"], HALF))
    command("train", recipe, *whole)
    launched([*sharded(tmp_path), "--main_process_port", "29614"], recipe, half)
    assert_same(student(recipe, half), student(recipe, whole))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_fsdp2(recipe: Path, tmp_path: Path) -> None:
    overrides = [*HALF, "train.arguments.save_steps=2", "train.arguments.eval_steps=2", "train.monitor.keep_checkpoints=true"]
    found, launcher = student(recipe, overrides), [*sharded(tmp_path), "--main_process_port", "29615"]
    launched(launcher, recipe, overrides)
    whole = found.parent.rename(tmp_path / "whole")
    # What a kill after the second step leaves.
    shutil.copytree(whole / "distilled" / "checkpoints" / "checkpoint-2", found / "checkpoints" / "checkpoint-2")
    launched(launcher, recipe, overrides)
    assert_same(found, whole / "distilled")
    first, again = (json.loads((d / "log_history.json").read_text())["history"][0] for d in (whole / "distilled", found))
    assert again["seconds"] == first["seconds"], "it began anew"


def sharded(directory: Path) -> list[str]:
    """The shipped FSDP2 configuration, on CPU."""
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text()) | {"use_cpu": True, "mixed_precision": "no"}
    path = directory / "fsdp2.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["accelerate.commands.launch", "--config_file", str(path)]


@pytest.mark.slow
def test_roll_outs_are_refused_in_two_processes(recipe: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613"]
    argv += ["-m", "tdistill.cli", "run", str(recipe), "rollout.temperature=0.9"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "`rollout` runs in one process, and this is one of 2" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_the_shipped_configurations_parse(name: str) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes == 2
    assert config.mixed_precision == "bf16"
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
