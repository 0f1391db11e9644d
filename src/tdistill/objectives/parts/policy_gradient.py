"""Compute what the policy-gradient objectives share: importance ratios, and rewards that leave out the mean of the response."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.steps import Steps


def log_policy(steps: Steps) -> Float[Tensor, "B T"]:
    """Return log π(a_t|s_t) of the token taken, over the vocabulary."""
    assert steps.taken_logit_t is not None
    assert steps.log_z_t is not None
    return steps.taken_logit_t - steps.log_z_t


def truncated_ratio(steps: Steps, rho_max: float) -> Float[Tensor, "B T"]:
    """Return ρ_t = min(rho_max, π(a_t|s_t)/behaviour(a_t|s_t)), without gradient. The ratio is 1 where the behaviour is NaN."""
    assert steps.behaviour_logp_t is not None
    log_ratio_t = torch.where(steps.behaviour_logp_t.isnan(), 0.0, log_policy(steps).detach() - steps.behaviour_logp_t)
    return log_ratio_t.clamp(max=math.log(rho_max)).exp()


def centred_reward(steps: Steps, cost_t: Float[Tensor, "B T"], center: float) -> Float[Tensor, "B T"]:
    """Return ``center`` times the mean cost of the response, minus the cost, at each of its states; 0 elsewhere."""
    cost_t, exists_t = torch.where(steps.exists_t, cost_t, 0.0), steps.exists_t
    mean = cost_t.sum(-1, keepdim=True) / exists_t.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(exists_t, center * mean - cost_t, 0.0)
