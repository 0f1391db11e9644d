"""Let the value head learn at its own rate, and alone in the first steps."""

import torch
from torch import nn


def clear_gradients(module: nn.Module) -> None:
    """Remove the gradients of all parameters, so that neither the optimizer nor weight decay changes them."""
    for p in module.parameters():
        p.grad = None


def own_rate(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], rate: float) -> None:
    """Give parameters another learning rate, in a group of their own in the optimizer, without weight decay."""
    mine = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in mine]
    defaults = {k: v for k, v in optimizer.param_groups[-1].items() if k not in ("params", "initial_lr")}
    optimizer.add_param_group({**defaults, "params": parameters, "lr": rate, "weight_decay": 0.0})
