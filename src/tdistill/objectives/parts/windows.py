"""Average squared path errors over windows of every length from a step on, with weights that fall by λ a token."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from tdistill.mdp.bellman import lambda_return


def window_length(counts_t: Bool[Tensor, "B T"], longest: int) -> Int[Tensor, "B T"]:
    """Return N: how many steps in a row count from t on, at most ``longest``."""
    steps = counts_t.shape[1]
    index = torch.arange(steps, device=counts_t.device)
    stop_t = torch.where(counts_t, steps, index).flip(1).cummin(1).values.flip(1)  # the first step from t on that doesn't count
    return (stop_t - index).clamp(max=longest)


def whole_response_loss(delta_t: Float[Tensor, "B T"], discount_t: Float[Tensor, "B T"], lambda_: float) -> Float[Tensor, "B T"]:
    """Return Σ_n w_n ½δ²_{t,n} over windows of every length up to the whole response, in O(T).

    Read w_n as the probability that a window has n tokens. δ_{t,n} = δ_t + γδ_{t+1,n−1}, so mean B and half the variance M follow from
    those one step later:

        B_t = δ_t + γ_tλB_{t+1}      M_t = γ_t²λ[M_{t+1} + (1−λ)·½B²_{t+1}]      Σ_n w_n ½δ²_{t,n} = ½B²_t + M_t

    Only terms ≥ 0 are added, so no rounding makes the loss negative.

    Args:
        delta_t: δ_t, the error of one step.
        discount_t: γ_t, γ where the next step counts and 0 elsewhere: no window goes on from there.
    """
    zero_t, trace_t = torch.zeros_like(delta_t), torch.full_like(delta_t, lambda_)
    mean_t = lambda_return(delta_t, discount_t, zero_t, zero_t, trace_t)
    spread_t = discount_t.square() * lambda_ * (1.0 - lambda_) * 0.5 * pad(mean_t[:, 1:], (0, 1)).square()
    return 0.5 * mean_t.square() + lambda_return(spread_t, discount_t.square(), zero_t, zero_t, trace_t)


def bounded_window_loss(
    delta_t: Float[Tensor, "B T"], length_t: Int[Tensor, "B T"], gamma: float, lambda_: float, longest: int
) -> Float[Tensor, "B T"]:
    """Return Σ_n w_n ½δ²_{t,n} over windows of at most ``longest`` tokens: O(T) in memory, O(T·longest) in time."""
    return _WindowLoss.apply(delta_t, length_t, gamma, lambda_, longest)


class _WindowLoss(torch.autograd.Function):
    """Compute ``bounded_window_loss``.

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
