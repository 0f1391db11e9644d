"""Compute the value term of inverse soft Q-learning, which holds V down while φ raises Q."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from tdistill.mdp.steps import Steps

ValueTerm = Literal["value_expert", "v0", "value_mix"]


def value_part(
    v_t: Float[Tensor, "B T"],
    backup_t: Float[Tensor, "B T"],
    steps: Steps,
    expert_t: Bool[Tensor, "B T"],
    value_term: ValueTerm,
) -> Float[Tensor, "B T"]:
    """Return the value term of each step, for the steps that count. ``backup_t`` is γ_t·V_p(s_{t+1}).

    ``value_expert`` V_p(s_t) − γV_p(s_{t+1}) at the expert's steps · ``value_mix`` at all · ``v0`` what is left of the first when it is
    summed with the weights w_t, which fall by γ a step: V_p(s_t) where a run of counted steps starts, and −γV_p(s_{t+1}) where a run ends
    before the response does. If all steps count, that is V_p(s_0) alone.

    To count V_p(s_0) whatever the steps are would leave the loss without a lower bound: φ of a step that doesn't count is dropped, so nothing
    holds the value of its state up, nor (under linear φ) the values of the states after it down.
    """
    if value_term != "v0":
        return torch.where(expert_t | (value_term == "value_mix"), v_t - backup_t, 0.0)
    counts_t = expert_t & steps.counted_t
    starts_t = counts_t & ~pad(counts_t[:, :-1], (1, 0))
    stops_t = counts_t & ~pad(counts_t[:, 1:], (0, 1)) & ~steps.terminal_t
    return torch.where(starts_t, v_t, 0.0) - torch.where(stops_t, backup_t, 0.0)


def discount_weights(mask_t: Bool[Tensor, "B T"], gamma: float, dtype: torch.dtype) -> Float[Tensor, "B T"]:
    """Return w_t = T(1−γ)γ^t/(1−γ^T) = T·γ^t / Σ_{k<T} γ^k over the T steps of each response, 0 elsewhere: their mean is 1.

    γ = 1 weighs all alike, γ = 0 the first step alone. Σ_t w_t (V_t − γV_{t+1}) = w_0·(V_0 − γ^T V_T).
    """
    power_t = torch.where(mask_t, torch.full_like(mask_t, gamma, dtype=dtype) ** (mask_t.cumsum(-1) - 1), 0.0)
    return power_t * (mask_t.sum(-1, keepdim=True) / power_t.sum(-1, keepdim=True).clamp(min=1.0))
