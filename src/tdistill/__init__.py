"""Distil language models by temporal-difference imitation learning on the teacher's top-p tokens, from prompts to an evaluated student.

The public interface is the command line, the recipe, and the names in ``__all__``. All other modules may change in any version.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use: `tdistill --help` must not wait for torch.
_LAZY = {
    "bind": "tdistill.objectives",
    "OBJECTIVES": "tdistill.objectives",
    "Steps": "tdistill.mdp.steps",
    "DistillTrainer": "tdistill.training.trainer",
    "StudentModel": "tdistill.models.student",
    "RolloutDataset": "tdistill.data.dataset",
    "DistillCollator": "tdistill.data.collate",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tdistill' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
