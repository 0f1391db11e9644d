"""Starts tdistill's command line in several processes, with the environment of a shipped accelerate configuration."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
ON_CPU = Path(__file__).with_name("fsdp_on_cpu.py")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]


def environment(config: str, **changes: str) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets for a configuration of recipes/accelerate, on CPU and with ``changes``."""
    before = dict(os.environ)
    try:
        args = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{config}.yaml"), "train.py"])
        found = prepare_multi_gpu_env(_validate_launch_command(args)[0])
    finally:
        os.environ.clear()
        os.environ.update(before)
    found |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return found | changes


def launch(program: list[str], env: dict[str, str], timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes; what they printed is in ``stdout`` and ``stderr``."""
    return subprocess.run([sys.executable, *TORCHRUN, *program], env=env, capture_output=True, text=True, timeout=timeout_s, check=False)


def with_fsdp2(*argv: object, **changes: str) -> str:
    """Run the command line under the shipped FSDP2 configuration, sharded over two CPU processes."""
    done = launch([str(ON_CPU), *map(str, argv)], environment("fsdp2", **changes))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def with_ddp(*argv: object, **changes: str) -> str:
    """Run the command line in two processes with a whole student each."""
    done = launch(["-m", "tdistill", *map(str, argv)], environment("ddp", **changes))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
