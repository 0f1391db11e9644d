"""Enforce path consistency on the top-p tokens: values and log-ratios must agree over windows of every length, up to the whole response."""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from tdistill.mdp.bellman import lambda_return
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, UnitInterval
from tdistill.objectives.parts.anchor import Anchor
from tdistill.objectives.parts.gauge import Gauge
from tdistill.objectives.parts.transition import td_error, td_needs, td_output, transitions

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
    delta_t, span = td_error(td, gamma), td.v_t.shape[1]
    longest = min(max_n or span, span)
    length_t = window_length(td.counts_t, longest)
    if longest == span:
        loss_t = whole_response_loss(delta_t, td.counts_t, gamma, lambda_)
    else:
        loss_t = _WindowLoss.apply(delta_t, length_t, gamma, lambda_, longest)
    out = td_output(steps, td, loss_t, gamma, anchor, anchor_weight)
    window_t = torch.where(td.counts_t, length_t.to(delta_t.dtype), torch.nan)
    return ObjectiveOutput(out.loss_t, {**out.metrics, "td/window": window_t})


def window_length(counts_t: Bool[Tensor, "B T"], longest: int) -> Int[Tensor, "B T"]:
    """Return N: how many steps in a row count from t on, at most ``longest``."""
    steps = counts_t.shape[1]
    index = torch.arange(steps, device=counts_t.device)
    stop_t = torch.where(counts_t, steps, index).flip(1).cummin(1).values.flip(1)  # the first step from t on that doesn't count
    return (stop_t - index).clamp(max=longest)


def whole_response_loss(delta_t: Float[Tensor, "B T"], counts_t: Bool[Tensor, "B T"], gamma: float, lambda_: float) -> Float[Tensor, "B T"]:
    """Return Σ_n w_n ½δ²_{t,n} over windows of every length up to the whole response, in O(T).

    Read w_n as the probability that a window has n tokens. δ_{t,n} = δ_t + γδ_{t+1,n−1}, so mean B and half the variance M follow from
    those one step later, if that step counts (else B_t = δ_t and M_t = 0):

        B_t = δ_t + γλB_{t+1}      M_t = γ²λ[M_{t+1} + (1−λ)·½B²_{t+1}]      Σ_n w_n ½δ²_{t,n} = ½B²_t + M_t

    Only terms ≥ 0 are added, so no rounding makes the loss negative.
    """
    zero_t = torch.zeros_like(delta_t)
    trace_t = lambda_ * pad(counts_t[:, 1:], (0, 1)).to(delta_t.dtype)  # 0 where the next step doesn't count
    mean_t = lambda_return(delta_t, zero_t, zero_t, trace_t, gamma)
    spread_t = gamma**2 * (1.0 - lambda_) * trace_t * 0.5 * pad(mean_t[:, 1:], (0, 1)).square()
    return 0.5 * mean_t.square() + lambda_return(spread_t, zero_t, zero_t, trace_t, gamma**2)


class _WindowLoss(torch.autograd.Function):
    """Compute Σ_n w_n ½δ²_{t,n} over windows of at most ``longest`` tokens: O(T) in memory, O(T·longest) in time.

    δ_{t,n} is summed up while n grows, and summed up again for the gradient: ∂loss_t/∂δ_{t+k} = γᵏ Σ_{n>k} w_n δ_{t,n}.
    """

    @staticmethod
    def forward(ctx: Any, delta_t: Tensor, length_t: Tensor, gamma: float, lambda_: float, longest: int) -> Tensor:
        ctx.save_for_backward(delta_t, length_t)
        ctx.arguments = (gamma, lambda_, longest)
        loss_t = torch.zeros_like(delta_t)
        for weight_t, error_t in _windows(delta_t, length_t, gamma, lambda_, longest):
            loss_t += weight_t * 0.5 * error_t.square()
        return loss_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        delta_t, length_t = ctx.saved_tensors
        gamma, lambda_, longest = ctx.arguments
        left_t = torch.zeros_like(delta_t)  # Σ_{n>k} w_n δ_{t,n}, at first for k = 0
        for weight_t, error_t in _windows(delta_t, length_t, gamma, lambda_, longest):
            left_t += weight_t * error_t
        by_delta_t = torch.zeros_like(delta_t)
        for k, (weight_t, error_t) in enumerate(_windows(delta_t, length_t, gamma, lambda_, longest)):
            reached = delta_t.shape[1] - k
            by_delta_t[:, k:] += gamma**k * (grads[0] * left_t)[:, :reached]
            left_t = torch.where(length_t > k + 1, left_t - weight_t * error_t, 0.0)
        return by_delta_t, None, None, None, None


def _windows(
    delta_t: Float[Tensor, "B T"], length_t: Int[Tensor, "B T"], gamma: float, lambda_: float, longest: int
) -> Iterator[tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]]:
    """Yield w_n and δ_{t,n} = Σ_{k<n} γᵏ δ_{t+k} for n = 1 … longest."""
    error_t = torch.zeros_like(delta_t)
    for n in range(1, longest + 1):
        error_t = error_t + gamma ** (n - 1) * pad(delta_t[:, n - 1 :], (0, n - 1))
        yield window_weights(length_t, lambda_, n, delta_t.dtype), error_t


def window_weights(length_t: Int[Tensor, "B T"], lambda_: float, n: int, dtype: torch.dtype) -> Float[Tensor, "B T"]:
    """Return w_n of the windows from each step: (1−λ)λ^{n−1} for n < N, λ^{N−1} at n = N, 0 beyond. They sum to 1 unless N = 0."""
    longer, last = length_t.gt(n).to(dtype), length_t.eq(n).to(dtype)
    return lambda_ ** (n - 1) * ((1.0 - lambda_) * longer + last)


OBJECTIVE = Objective(fn=path_consistency, needs=td_needs)
