"""Set how the value head learns: at its own rate, and alone in the first steps."""

from dataclasses import dataclass

import torch
from torch import nn

from tdistill.training.target import TARGET_TAU


@dataclass(frozen=True)
class ValueSettings:
    """Set how the value head and the target network learn.

    Args:
        learning_rate: the value head's rate; None is the student's. The schedule is the same.
        warmup_steps: first steps in which the value head alone learns. It starts at 0, and until it has learnt the level of
            the returns, an advantage measured from it says that every token was a bad one. The gradient norm, and so its clip, is
            then that of the value head alone.
        detach: the head reads the hidden states without gradient: its loss does not move the language model.
        target_tau: how fast a target network follows the student.
    """

    learning_rate: float | None = None
    warmup_steps: int = 0
    detach: bool = False
    target_tau: float = TARGET_TAU


def clear_gradients(module: nn.Module) -> None:
    """Remove the gradients of all parameters: the optimizer leaves them as they are, and weight decay does not touch them."""
    for p in module.parameters():
        p.grad = None


def own_rate(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], rate: float) -> None:
    """Move ``parameters`` into a group of their own with another learning rate."""
    mine = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in mine]
    defaults = {k: v for k, v in optimizer.param_groups[-1].items() if k not in ("params", "initial_lr")}
    optimizer.add_param_group({**defaults, "params": parameters, "lr": rate, "weight_decay": 0.0})
