"""Let the value head learn at its own rate, and alone in the first steps."""

import torch
from torch import nn


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
