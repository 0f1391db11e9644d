"""Keep a target network: the Polyak average of the student, from which TD objectives read the values of later states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tdistill.runtime.errors import ConfigError

TARGET_FILE = "target_network.safetensors"


class TargetNetwork:
    """Keep a whole copy of the student, without gradient: θ̄ starts at θ, and each optimizer step sets θ̄ ← (1−τ)·θ̄ + τ·θ.

    Args:
        student: the student to follow; it must be whole in this process, so neither FSDP nor DeepSpeed shards it.
        tau: τ in (0, 1]; 1 is the student itself, one step late at most.

    Raises:
        ConfigError: τ out of range.
    """

    def __init__(self, student: nn.Module, tau: float):
        if not 0.0 < tau <= 1.0:
            raise ConfigError(f"target_tau must lie in (0, 1], got {tau}: small values follow the student slowly, 1 at once.")
        self._averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(1.0 - tau))
        self._averaged.update_parameters(student)  # the first update copies, and is spent here
        self._averaged.requires_grad_(False).eval()

    @property
    def module(self) -> nn.Module:
        """Return the average, of the student's own class."""
        return self._averaged.module

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """Run the student's forward under the averaged weights."""
        return self._averaged(**inputs)

    def follow(self, student: nn.Module) -> None:
        """Move the average towards the student by one step."""
        self._averaged.update_parameters(student)

    def save(self, directory: Path) -> None:
        """Save the target beside a checkpoint's weights, so that a resumed run bootstraps from the same values."""
        save_model(self.module, str(directory / TARGET_FILE))

    def load(self, directory: Path) -> None:
        """Read back what ``save`` wrote.

        Raises:
            ConfigError: the checkpoint has none.
        """
        if not (directory / TARGET_FILE).is_file():
            raise ConfigError(f"{directory} has no {TARGET_FILE}: it was written by an objective without target_network. Start anew.")
        load_model(self.module, str(directory / TARGET_FILE))


class FollowStudent(TrainerCallback):
    """Move the target after every optimizer step."""

    def __init__(self, target: TargetNetwork, student: Callable[[], nn.Module]):
        self._target, self._student = target, student

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the target. The Trainer calls it."""
        self._target.follow(self._student())
