"""The value term of inverse soft Q-learning: what holds V down while φ raises Q."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ValueTerm = Literal["value_expert", "v0", "value_mix"]


def value_part(
    v_t: Float[Tensor, "B T"],
    v_tp1: Float[Tensor, "B T"],
    expert_t: Bool[Tensor, "B T"],
    mask_t: Bool[Tensor, "B T"],
    gamma: float,
    value_term: ValueTerm,
) -> Float[Tensor, "B T"]:
    """``value_expert`` V_p(s_t) − γV_p(s_{t+1}) at the expert's steps · ``value_mix`` at all · ``v0`` V_p(s_0), at the expert's first."""
    if value_term == "v0":
        return torch.where(expert_t & (mask_t.cumsum(-1) == 1), v_t, 0.0)
    return torch.where(expert_t | (value_term == "value_mix"), v_t - gamma * v_tp1, 0.0)


def discount_weights(mask_t: Bool[Tensor, "B T"], gamma: float, dtype: torch.dtype) -> Float[Tensor, "B T"]:
    """w_t = T(1−γ)γ^t/(1−γ^T) = T·γ^t / Σ_{k<T} γ^k over the T steps of each response, 0 elsewhere: their mean is 1.

    γ = 1 weighs all alike, γ = 0 the first step alone. Σ_t w_t (V_t − γV_{t+1}) = w_0·(V_0 − γ^T V_T).
    """
    power_t = torch.where(mask_t, torch.full_like(mask_t, gamma, dtype=dtype) ** (mask_t.cumsum(-1) - 1), 0.0)
    return power_t * (mask_t.sum(-1, keepdim=True) / power_t.sum(-1, keepdim=True).clamp(min=1.0))
