"""Path consistency on the top-p tokens: values and log-ratios must agree over windows of every length, up to the whole response."""

from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from tdistill.mdp.steps import Steps
from tdistill.objectives.anchor import Anchor
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, UnitInterval
from tdistill.objectives.gauge import Gauge
from tdistill.objectives.transition import td_error, td_needs, td_output, transitions

Length = Annotated[int, Field(ge=1)]


def path_consistency(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    lambda_: UnitInterval = 0.95,
    max_n: Length | None = None,
    gauge: Gauge = "learned",
    anchor: Anchor = "none",
    anchor_weight: NonNegative = 1.0,
) -> ObjectiveOutput:
    """loss_t = (1−λ)Σ_{n<N} λ^{n−1} ½δ²_{t,n} + λ^{N−1} ½δ²_{t,N}.

    δ_{t,n} = V_p(s_t) − γⁿV_p(s_{t+n}) + Σ_{k<n} γᵏ log[proj_p π(a_{t+k})/proj_p π*(a_{t+k})], N = min(max_n, longest window from t).
    A window of n tokens has them all on A_p, and ends at an existing state or at the end (V_p = 0). Nachum et al. (2017), with the
    teacher's log-probability as reward. δ_{t,n} = Σ_{k<n} γᵏ δ_{t+k,1}, and δ_{t,1} is the error of ``csil``: max_n = 1 or λ = 0 is
    ``csil(stop_target=False)``. γ = λ = 1 is trajectory balance (Malkin et al. 2022) of every suffix: at t = 0 of a finished
    response, ½(V_p(s_0) + Σ log-ratios)². The teacher as student with v ≡ 0 under the gauge ``learned`` pays 0 with gradient 0.

    Args:
        lambda_: weight of long windows, in [0, 1]; the weights of a step sum to 1.
        max_n: the longest window in tokens; None is the whole response.
        gauge: c(s) in Q = ℓ − c, see ``gauged_q``; under all but ``learned`` and ``none`` V_p is a function of the policy alone.
        anchor: what holds the student's mass outside A_p, see ``anchor_loss``, times ``anchor_weight``.
    """
    td = transitions(steps, gauge)
    longest = min(max_n or td.v_t.shape[1], td.v_t.shape[1])
    length_t = window_length(td.counts_t, longest)
    delta = window_errors(td_error(td, gamma), gamma, longest)
    loss_t = (window_weights(length_t, lambda_, longest, delta.dtype) * 0.5 * delta.square()).sum(-1)
    out = td_output(steps, td, loss_t, gamma, anchor, anchor_weight)
    window_t = torch.where(td.counts_t, length_t.to(delta.dtype), torch.nan)
    return ObjectiveOutput(out.loss_t, {**out.metrics, "td/window": window_t})


def window_length(counts_t: Bool[Tensor, "B T"], longest: int) -> Int[Tensor, "B T"]:
    """N: how many steps in a row count from t on, at most ``longest``."""
    steps = counts_t.shape[1]
    index = torch.arange(steps, device=counts_t.device)
    stop_t = torch.where(counts_t, steps, index).flip(1).cummin(1).values.flip(1)  # the first step from t on that doesn't count
    return (stop_t - index).clamp(max=longest)


def window_errors(delta_t: Float[Tensor, "B T"], gamma: float, longest: int) -> Float[Tensor, "B T N"]:
    """δ_{t,n} = Σ_{k<n} γᵏ δ_{t+k,1} for n = 1 … N."""
    discount = gamma ** torch.arange(longest, device=delta_t.device, dtype=delta_t.dtype)
    return (pad(delta_t, (0, longest - 1)).unfold(1, longest, 1) * discount).cumsum(-1)


def window_weights(length_t: Int[Tensor, "B T"], lambda_: float, longest: int, dtype: torch.dtype) -> Float[Tensor, "B T N"]:
    """(1−λ)λ^{n−1} for n < N, λ^{N−1} at n = N, 0 beyond: they sum to 1 unless N = 0."""
    n = torch.arange(1, longest + 1, device=length_t.device)
    decay = lambda_ ** (n - 1).to(dtype)
    length = length_t.unsqueeze(-1)
    return torch.where(n < length, (1.0 - lambda_) * decay, torch.where(n == length, decay, 0.0))


OBJECTIVE = Objective(fn=path_consistency, needs=td_needs)
