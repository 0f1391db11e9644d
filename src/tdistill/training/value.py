"""How the value head learns: a rate of its own, and a head start."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tdistill.training.target import TARGET_TAU


@dataclass(frozen=True)
class ValueSettings:
    """Of the value head and the target network.

    Args:
        learning_rate: of the value head; None is the student's. The schedule is the same.
        warmup_steps: first steps in which the value head alone learns. It starts at 0, and until it has learnt the level of
            the returns, an advantage measured from it says that every token was a bad one.
        detach: the head reads the hidden states without gradient: its loss does not move the language model.
        target_tau: how fast a target network follows the student.
    """

    learning_rate: float | None = None
    warmup_steps: int = 0
    detach: bool = False
    target_tau: float = TARGET_TAU


class ValueWarmup(TrainerCallback):
    """Keeps the language model as it is in the first ``steps`` optimizer steps."""

    def __init__(self, lm: nn.Module, steps: int):
        self._lm, self._steps = lm, steps

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """As the Trainer calls it: a parameter without gradient is not touched, by weight decay neither."""
        if state.global_step < self._steps:
            for p in self._lm.parameters():
                p.grad = None


def own_rate(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], rate: float) -> None:
    """Move ``parameters`` into a group of their own with another learning rate."""
    mine = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in mine]
    defaults = {k: v for k, v in optimizer.param_groups[-1].items() if k not in ("params", "initial_lr")}
    optimizer.add_param_group({**defaults, "params": parameters, "lr": rate, "weight_decay": 0.0})
