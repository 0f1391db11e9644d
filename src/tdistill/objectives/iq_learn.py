"""Top-p inverse soft Q-learning: Bellman Distill (Yu, Li & Zhang, AAAI 2026), with every knob that changes its answer."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.errors import ConfigError
from tdistill.mdp.bellman import (
    bellman_error,
    expectation,
    has_successor,
    next_value,
    project,
    soft_value,
    take,
)
from tdistill.mdp.steps import Steps
from tdistill.objectives.anchor import ANCHOR_NEEDS, Anchor, anchor_loss
from tdistill.objectives.contract import Finite, Gamma, NonNegative, Objective, ObjectiveOutput, Positive
from tdistill.objectives.gauge import GAUGE_NEEDS, Gauge, gauged_q

Phi = Literal["chi2", "linear"]
Estimator = Literal["sampled", "expected"]
Terminal = Literal["zero", "absorbing"]


def iq_learn(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    alpha: Positive = 0.1,
    phi: Phi = "chi2",
    gauge: Gauge = "max",
    estimator: Estimator = "sampled",
    terminal: Terminal = "zero",
    anchor: Anchor = "none",
    anchor_weight: NonNegative = 1.0,
    q_min: Finite | None = -10.0,
) -> ObjectiveOutput:
    """loss_t = −φ(r_t) + V_p(s_t) − γV_p(s_{t+1}),  r_t = Q(s_t,a_t) − γV_p(s_{t+1}),  χ²: φ(x) = x − x²/(4α).

    The objective of Bellman Distill (Yu et al. 2026; IQ-Learn, Garg et al. 2021), as a loss. With φ linear γ cancels and it
    is −log proj_p π(a_t|s_t), cloning on A_p; χ² adds r_t²/(4α). α → ∞ is linear. γ = 0 has no temporal content. Steps whose
    token lies outside A_p, and the last step of a response cut off by length, contribute 0. Order: gauge, clip, V_p.

    Args:
        alpha: scale of φ in nats. The default is the paper's .1, which weighs r² far above the likelihood: choose it by validation.
        gauge: c(s) in Q = ℓ − c, see ``gauged_q``.
        estimator: ``sampled`` takes φ at the token taken; ``expected`` averages it over proj_p π*, which lets untaken tokens
            share the successor of the token taken (less noise; biased for nonlinear φ).
        terminal: V of the end: 0, or ``absorbing`` r_max/(1−γ) with r_max = argmax φ = 2α (χ² only, γ < 1).
        anchor: what holds the student's mass outside A_p, at every valid step: ``tail`` KL(Bernoulli(m*)‖Bernoulli(m)) of the
            masses on A_p, ``nll`` −log π(a_t) over the vocabulary, times ``anchor_weight``.
        q_min: Q is clipped below at it (None: no clip); gradient that would raise a clipped Q passes.
    """
    q_t = gauged_q(steps, gauge)
    clipped_t = torch.zeros_like(steps.legal_t) if q_min is None else steps.legal_t & (q_t < q_min)
    q_t = q_t if q_min is None else clip_below(q_t, q_min)
    v_t = soft_value(q_t, steps.legal_t)
    v_tp1 = next_value(v_t, steps.terminal_t, _terminal_value(terminal, alpha, gamma))
    reward_t = bellman_error(take(q_t, steps.a_t), v_tp1, gamma)
    if estimator == "sampled":
        first_t = phi_alpha(reward_t, phi, alpha)
    else:
        rewards = bellman_error(q_t, v_tp1.unsqueeze(-1), gamma)
        first_t = expectation(project(steps.teacher_logp_t, steps.legal_t), phi_alpha(rewards, phi, alpha), steps.legal_t)
    counts_t = (steps.a_t >= 0) & has_successor(steps.exists_t, steps.terminal_t)
    loss_t = torch.where(counts_t, -first_t + v_t - gamma * v_tp1, 0.0)
    if anchor != "none":
        loss_t = loss_t + anchor_weight * anchor_loss(steps, anchor)
    undefined = torch.full_like(v_t, math.nan)
    metrics = {
        "td/q": torch.where(counts_t, take(q_t, steps.a_t), undefined),
        "td/v": v_t,
        "td/reward": torch.where(counts_t, reward_t, undefined),
        "td/bellman_error": torch.where(counts_t, reward_t.square(), undefined),
        "td/off_support_fraction": (steps.a_t < 0).to(v_t.dtype),
        "td/clipped_fraction": clipped_t.sum(-1) / steps.legal_t.sum(-1).clamp(min=1).to(v_t.dtype),
    }
    return ObjectiveOutput(loss_t, {k: v.detach() for k, v in metrics.items()})


def phi_alpha(x: Float[Tensor, "*B"], phi: Phi, alpha: float) -> Float[Tensor, "*B"]:
    """φ_α(x) = α·φ(x/α):  χ² x − x²/(4α), largest at x = 2α;  linear x."""
    return x if phi == "linear" else x - x.square() / (4.0 * alpha)


class _ClipBelow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, floor):  # type: ignore[no-untyped-def]  # autograd's own signature
        ctx.save_for_backward(x < floor)
        return x.clamp(min=floor)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (below,) = ctx.saved_tensors
        # Descent raises x where its gradient is negative: that much may pass. A hard clip would leave a student that is most
        # wrong without any signal.
        return torch.where(below & (grad > 0), 0.0, grad), None


def clip_below(x: Float[Tensor, "*B"], floor: float) -> Float[Tensor, "*B"]:
    """max(x, floor), whose gradient at clipped entries passes where descent would raise x, and is 0 elsewhere."""
    return _ClipBelow.apply(x, floor)


def _terminal_value(terminal: Terminal, alpha: float, gamma: float) -> float:
    return 0.0 if terminal == "zero" else 2.0 * alpha / (1.0 - gamma)


def _needs(*, gauge: Gauge, anchor: Anchor, **_: object) -> frozenset[str]:
    return GAUGE_NEEDS[gauge] | ANCHOR_NEEDS[anchor]


def _check(*, terminal: Terminal, phi: Phi, alpha: float, gamma: float, **_: object) -> None:
    if terminal == "zero":
        return
    if phi != "chi2" or math.isinf(alpha):
        raise ConfigError(
            f"terminal='absorbing' needs the reward at which φ is largest, which phi={phi!r} with alpha={alpha} does not have: "
            "use phi='chi2' with a finite alpha, or terminal='zero'."
        )
    if gamma >= 1.0:
        raise ConfigError("terminal='absorbing' is worth r_max/(1−γ) and needs gamma < 1, e.g. 0.99.")


OBJECTIVE = Objective(fn=iq_learn, needs=_needs, check=_check)
