"""Define which steps a TD loss counts, the value of the end, and the metrics logged for these steps."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.bellman import has_successor, next_value
from tdistill.mdp.steps import Steps
from tdistill.runtime.errors import ConfigError


def counted(steps: Steps) -> Bool[Tensor, "B T"]:
    """Tell which steps count: the token taken lies on A_p and the step has a successor (it is not the last of a cut-off response)."""
    return (steps.a_t >= 0) & has_successor(steps.exists_t, steps.terminal_t)


def successor_value(v_t: Float[Tensor, "B T"], steps: Steps, expert_t: Bool[Tensor, "B T"], end: float) -> Float[Tensor, "B T"]:
    """Return V_p(s_{t+1}), with V(terminal) = ``end`` where the expert's response ended and 0 where another's did."""
    return torch.where(steps.terminal_t & expert_t, end, next_value(v_t, steps.terminal_t))


def expert_flags(steps: Steps, required: bool = False) -> Bool[Tensor, "B T"]:
    """Tell which steps the teacher or a human took: all of them if the batch does not say.

    Raises:
        ConfigError: the batch does not say, and ``required``.
    """
    if steps.expert_t is None and not required:
        return torch.ones_like(steps.mask_t)
    if steps.expert_t is None:
        raise ConfigError("This objective tells the expert's steps from others: give Steps.expert_t, True where the teacher wrote the token.")
    return steps.expert_t


def td_metrics(
    steps: Steps, q_t: Float[Tensor, "B T"], v_t: Float[Tensor, "B T"], reward_t: Float[Tensor, "B T"], error_t: Float[Tensor, "B T"]
) -> dict[str, Float[Tensor, "B T"]]:
    """Return Q, implied reward and squared Bellman error of the token taken, where the step counts; V and the share off A_p everywhere."""
    counts_t = counted(steps)
    undefined = torch.full_like(v_t, math.nan)
    return {
        "td/q": torch.where(counts_t, q_t, undefined),
        "td/v": v_t,
        "td/reward": torch.where(counts_t, reward_t, undefined),
        "td/bellman_error": torch.where(counts_t, error_t.square(), undefined),
        "td/off_support_fraction": (steps.a_t < 0).to(v_t.dtype),
    }
