"""Compute the α-β-divergence: forward KL is (1, 0), reverse KL (0, 1), and squared distance (1, 1)."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.support import Support, check_temperature, distributions, support_needs
from tdistill.runtime.errors import ConfigError

# exp goes on as its tangent above e^20: only p^α q^β with a negative exponent gets there, for a ratio of 5e8 and more.
EXP_LIMIT = 20.0
# An exponent below this is 0: its quotient would underflow in single precision.
ZERO_EXPONENT = 1e-30


def alpha_beta(
    steps: Steps, *, alpha: Finite = 0.2, beta: Finite = 0.7, support: Support = "tail", loss_temperature: FinitePositive = 1.0
) -> ObjectiveOutput:
    """Measure the α-β-divergence between teacher and student (Wang et al. 2025).

        loss_t = −1/(αβ) Σ_a [p^α q^β − α/(α+β)·p^(α+β) − β/(α+β)·q^(α+β)],  p the teacher, q the student

    Where α, β or α+β is 0 it is the analytic limit: (1, 0) is KL(p‖q), (0, 1) is KL(q‖p).

    Args:
        alpha: how errors count: ∂loss/∂log q = q^β·(q^α − p^α)/α, by their ratio near 0 and by their difference at 1.
        beta: how much the student's own probability weighs them; α + β ≥ 0. The defaults are those of the authors' GPT-2 scripts.
        support: as for ``forward_kl``; ``tail`` is a lower bound of ``dense`` for α + β = 1 alone.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    p, q, legal = distributions(steps, support, loss_temperature)
    return ObjectiveOutput(ab_divergence(p, q, legal, alpha, beta))


def ab_divergence(
    p: Float[Tensor, "*B J"], q: Float[Tensor, "*B J"], legal: Bool[Tensor, "*B J"], alpha: float, beta: float
) -> Float[Tensor, "*B"]:
    """Return the α-β-divergence from log-probs, over legal slots.

    Each slot is (log p − log q)² times the second divided difference of exp at (α+β)·log p, α·log p + β·log q and
    (α+β)·log q. Divided differences go on smoothly where nodes meet, which is what gives every limit.
    """
    if abs(beta) > abs(alpha):  # D_{α,β}(p‖q) = D_{β,α}(q‖p), and the larger exponent is the one to divide by
        p, q, alpha, beta = q, p, beta, alpha
    total, p_any, q_any = alpha + beta, legal & (p > -torch.inf), legal & (q > -torch.inf)
    log_p, log_q = (torch.where(p_any & q_any, x, 0.0) for x in (p, q))
    slot = _both(total * log_p, log_q - log_p, alpha, beta)
    return (slot + _alone(p, p_any & ~q_any, beta, total) + _alone(q, q_any & ~p_any, alpha, total)).sum(-1)


def _both(x: Float[Tensor, "*B"], gap: Float[Tensor, "*B"], alpha: float, beta: float) -> Float[Tensor, "*B"]:
    """Return the terms of slots where both have mass: nodes x, x + β·gap and x + (α+β)·gap, gap = log q − log p, |α| ≥ |β|."""
    # Near nodes cancel in a quotient. There exp at their mean, times gap²/2, is right to second order in their distance.
    near = (alpha * gap).abs() < torch.finfo(gap.dtype).eps ** (1 / 3)
    mean = torch.where(near, x + (alpha + 2.0 * beta) * gap / 3.0, 0.0)
    at_mean = 0.5 * gap.square() * mean.exp()
    if abs(alpha) < ZERO_EXPONENT:
        return at_mean
    return torch.where(near, at_mean, (_slope(x, gap, alpha + beta) - _slope(x, gap, beta)) / alpha)


def _slope(x: Float[Tensor, "*B"], gap: Float[Tensor, "*B"], c: float) -> Float[Tensor, "*B"]:
    """Return (exp(x + c·gap) − exp x) / c for x ≤ 0, exp continued above ``EXP_LIMIT``; exp(x)·gap at c = 0."""
    if abs(c) < ZERO_EXPONENT:
        return x.exp() * gap
    over = (x + c * gap - EXP_LIMIT).clamp(min=0.0)
    rise = c * gap - over
    up, down = rise.clamp(min=0.0), rise.clamp(max=0.0)  # each factor ≤ exp(EXP_LIMIT): no overflow on the way
    difference = torch.where(rise > 0, -(x + up).exp() * torch.expm1(-up), x.exp() * torch.expm1(down))
    return (difference + math.exp(EXP_LIMIT) * over) / c


def _alone(logp: Float[Tensor, "*B"], alone: Bool[Tensor, "*B"], other: float, total: float) -> Float[Tensor, "*B"]:
    """Return the terms of slots to which one of the two gives exactly 0: exp(total·logp)/(other·total), ∞ unless both are > 0.

    ``other`` is the exponent of the one that gives 0.
    """
    if other * total <= 0.0:
        return torch.where(alone, torch.inf, torch.zeros_like(logp))
    return torch.where(alone, (total * torch.where(alone, logp, 0.0)).exp() / (other * total), 0.0)


def _check(*, alpha: float, beta: float, **rest: Any) -> None:
    check_temperature(**rest)
    if alpha + beta < 0.0:
        raise ConfigError(
            f"alpha_beta needs alpha + beta ≥ 0, got alpha={alpha}, beta={beta}: below it the loss has no limit at tokens that both "
            "models find impossible, and the least likely token of the vocabulary rules it."
        )


OBJECTIVE = Objective(fn=alpha_beta, needs=support_needs, check=_check, scope="step")
