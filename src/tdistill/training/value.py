"""Let the value head learn at its own rate, alone in the first steps, and from the level of the returns."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tdistill.mdp.steps import Steps
from tdistill.objectives import BoundObjective
from tdistill.recipe.schema import ValueConfig
from tdistill.runtime.errors import ConfigError

AUTO = "auto"
ERROR = "td/bellman_error"  # logged by every objective that has a value head
# Below this curvature (mean over steps) the loss does not say which constant value is best.
LEAST_CURVATURE = 1e-5


@dataclass(frozen=True)
class Level:
    """Hold the level of the returns in nats: the constant value that the loss would settle at, and the size of the values."""

    mean: float
    size: float


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


def first_rate(value: ValueConfig, student_rate: float) -> float | None:
    """Return the rate of the value head before a batch is seen, or None if it is the student's. ``auto`` starts at the student's."""
    return student_rate if isinstance(value.learning_rate, str) else value.learning_rate


def check_auto(value: ValueConfig, optim: str, *, deepspeed: bool, own_optimizer: bool) -> None:
    """Refuse ``learning_rate: auto`` where it can't work.

    Raises:
        ConfigError: the optimizer steps by the gradient's size, is not the trainer's own, or keeps the weights to itself.
    """
    if value.learning_rate != AUTO:
        return
    if "sgd" in optim:
        raise ConfigError(
            f"value.learning_rate is auto, which multiplies the rate by the returns, but a step of optim={optim} already grows with them: give "
            "a number, or use an optimizer such as adamw_torch."
        )
    if deepspeed:
        raise ConfigError("value.learning_rate is auto, which sets weights that DeepSpeed keeps to itself: give a number, or use DDP or FSDP.")
    if own_optimizer:
        raise ConfigError("value.learning_rate is auto, which needs the trainer's own optimizer: leave optimizers out, or set the rate there.")


def level_of_returns(objective: BoundObjective, batches: Iterable[Steps], reduce: Callable[[Tensor], Tensor] | None = None) -> Level:
    """Measure the level of the returns on the batches of one optimizer step, without a gradient for the student.

    A constant c is added to all values. The gradient of the loss in c is 0 at the best constant. One Newton step from c = 0 finds it where
    the loss is quadratic in the values, as that of a regression is. For returns that bootstrap it is the fixed point. The size is the
    larger one of abs(c) and the root mean square of the first errors: with the head at 0 these are the returns, as far as they do not
    bootstrap. A response cut off by length counts as ended, else the fixed point would be that of a text without an end.

    Args:
        objective: an objective with a value head.
        batches: the steps with the values of the head.
        reduce: adds a tensor up over processes; None: one process.
    """
    sums = torch.stack([_sums(objective, steps) for steps in batches]).sum(0)
    slope_at_0, slope_at_1, errors, defined, count = (reduce(sums) if reduce else sums).tolist()
    curvature = slope_at_1 - slope_at_0
    mean = -slope_at_0 / curvature if curvature > LEAST_CURVATURE * count else 0.0
    size = max(abs(mean), math.sqrt(errors / defined) if defined else 0.0)
    # A student that equals its teacher has no returns yet, and a loss that is not finite stops the run soon.
    return Level(mean, size) if size > 0.0 and math.isfinite(size) else Level(0.0, 1.0)


@torch.enable_grad()
def _sums(objective: BoundObjective, steps: Steps) -> Tensor:
    """Return the loss's slope in a constant value at 0 and at 1, Σ error², the number of errors and that of valid steps."""
    slopes, errors = [], torch.zeros(2, dtype=torch.float64)
    for start in (0.0, 1.0):
        c = torch.full((), start, device=steps.q_t.device, requires_grad=True)
        out = objective(_raised(steps, c))
        loss = torch.where(steps.mask_t, out.loss_t, 0.0).sum()
        slopes.append(torch.autograd.grad(loss, c)[0].double())
        if start == 0.0:
            found = next(metric for name, metric in out.metrics.items() if name.endswith(ERROR))
            defined = steps.mask_t & ~found.isnan()
            errors = torch.stack([torch.where(defined, found, 0.0).double().sum(), defined.sum().double()])
    return torch.cat([torch.stack(slopes), errors, steps.mask_t.sum().double().reshape(1)])


def _raised(steps: Steps, by: Tensor) -> Steps:
    """Return the steps with a constant added to every value, and to those of the target network. The last step of each response ends it."""
    target = None if steps.target is None else _raised(steps.target, by.detach())
    values = {name: x + by for name in ("value_t", "action_value_t") if (x := getattr(steps, name)) is not None}
    last_t = steps.mask_t & ~pad(steps.mask_t[:, 1:], (0, 1))
    return replace(steps, terminal_t=steps.terminal_t | last_t, target=target, **values)


def set_rate(optimizer: torch.optim.Optimizer, scheduler: Any, parameters: list[nn.Parameter], rate: float) -> None:
    """Set the learning rate of a group of parameters in the middle of its schedule: what it is multiplied by stays."""
    mine = {id(p) for p in parameters}
    for i, group in enumerate(optimizer.param_groups):
        if mine.isdisjoint(id(p) for p in group["params"]):
            continue
        base = group.get("initial_lr", group["lr"])
        group["lr"], group["initial_lr"] = group["lr"] * rate / base, rate
        if "base_lrs" in vars(scheduler):  # those that watch a metric change the group's own rate
            scheduler.base_lrs[i] = rate
