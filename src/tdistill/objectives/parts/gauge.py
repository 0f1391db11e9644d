"""Compute gauges c(s), which choose the soft Q-function that the student's logits stand for: Q(s,a) = ℓ(s,a) − c(s)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import masked, soft_value
from tdistill.mdp.steps import Steps

Gauge = Literal["none", "max", "max_support", "mean_support", "lse", "learned"]

GAUGE_NEEDS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "max": frozenset({"max"}),
    "max_support": frozenset(),
    "mean_support": frozenset(),
    "lse": frozenset({"log_z"}),
    "learned": frozenset({"value"}),
}
# Under the other gauges Q or V_p has an upper bound, or V_p is a function of the policy alone, so that Q can't be regressed to a target.
FreeGauge = Literal["none", "learned"]


def gauged_q(steps: Steps, gauge: Gauge) -> Float[Tensor, "B T K"]:
    """Return Q(s,a) = ℓ(s,a) − c(s) on A_p; every c carries gradient.

    ``none`` c = 0 · ``max`` the largest logit over V (the authors' choice) · ``max_support``, ``mean_support`` the largest and
    the unweighted mean logit over A_p · ``lse`` the log-partition, so Q = log π and V_p = log of the student's mass on A_p ·
    ``learned`` Q = log proj_p π + v(s), so V_p = v(s) exactly.
    """
    return steps.q_t - _gauge(steps, gauge).unsqueeze(-1)


def _gauge(steps: Steps, gauge: Gauge) -> Float[Tensor, "B T"]:
    if gauge == "none":
        return torch.zeros_like(steps.q_t[..., 0])
    if gauge == "max":
        assert steps.max_t is not None
        return steps.max_t
    if gauge == "lse":
        assert steps.log_z_t is not None
        return steps.log_z_t
    if gauge == "learned":
        assert steps.value_t is not None
        return soft_value(steps.q_t, steps.legal_t) - steps.value_t
    exists = steps.exists_t.unsqueeze(-1)
    if gauge == "max_support":
        return torch.where(exists, masked(steps.q_t, steps.legal_t), 0.0).amax(-1)
    return torch.where(steps.legal_t, steps.q_t, 0.0).sum(-1) / steps.legal_t.sum(-1).clamp(min=1)
