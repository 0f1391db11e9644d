"""Compute the metrics that the temporal-difference objectives log."""

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.steps import Steps


def td_metrics(
    steps: Steps, q_t: Float[Tensor, "B T"], v_t: Float[Tensor, "B T"], reward_t: Float[Tensor, "B T"], error_t: Float[Tensor, "B T"]
) -> dict[str, Float[Tensor, "B T"]]:
    """Return Q, implied reward and squared Bellman error of the token taken, where the step counts; V and the share off A_p everywhere."""
    return {
        "td/q": torch.where(steps.counted_t, q_t, torch.nan),
        "td/v": v_t,
        "td/reward": torch.where(steps.counted_t, reward_t, torch.nan),
        "td/bellman_error": torch.where(steps.counted_t, error_t.square(), torch.nan),
        "td/off_support_fraction": (steps.a_t < 0).to(v_t.dtype),
    }
