"""Say where a result comes from: versions, git commit, machine and recipe."""

import platform
import resource
import subprocess
import sys
from typing import Any

import tdistill
from tdistill.recipe.schema import Recipe
from tdistill.recipe.text import dump_yaml
from tdistill.runtime.processes import process_count
from tdistill.runtime.secrets_guard import without_secrets

GIT_SECONDS = 10.0  # a slower git is done without


def provenance(recipe: Recipe) -> dict[str, Any]:
    """Return versions, git commit, machine, number of processes and the resolved recipe without secrets."""
    import torch
    import transformers

    return {
        "tdistill": tdistill.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {_threads(torch.get_num_threads())}, {_device()}",
        "processes": process_count(),
        "git_commit": _git_commit(),
        "seed": recipe.seed,
        "recipe": without_secrets(recipe.model_dump()),
    }


def resolved_yaml(recipe: Recipe) -> str:
    """Return the recipe with every default filled in, as YAML without secrets."""
    return dump_yaml(without_secrets(recipe.model_dump()))


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _git_commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, errors="replace", timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):  # no git, or a slow disk
        return "unknown"
    return found.stdout.strip() or "unknown"
