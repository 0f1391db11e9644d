"""Learn by top-p inverse soft Q-learning: Bellman Distill (Yu, Li & Zhang, AAAI 2026), with every option that changes its result."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.bellman import expectation, project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, Gamma, Objective, ObjectiveOutput, Positive
from tdistill.objectives.parts.clip import clip_below
from tdistill.objectives.parts.expert import expert_flags
from tdistill.objectives.parts.gauge import GAUGE_NEEDS, Gauge, gauged_q
from tdistill.objectives.parts.phi import MARGIN, Phi, extended, phi_alpha, r_max
from tdistill.objectives.parts.td_metrics import td_metrics
from tdistill.objectives.parts.value_term import ValueTerm, discount_weights, value_part
from tdistill.runtime.errors import ConfigError

Estimator = Literal["sampled", "expected"]
PhiOn = Literal["expert", "all"]
Terminal = Literal["zero", "absorbing"]


def iq_learn(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    alpha: Positive = 100.0,
    phi: Phi = "chi2",
    value_term: ValueTerm = "value_expert",
    phi_on: PhiOn = "expert",
    gauge: Gauge = "lse",
    estimator: Estimator = "expected",
    terminal: Terminal = "zero",
    q_min: Finite | None = None,
) -> ObjectiveOutput:
    """Fit Q so that its implied reward is high at the expert's tokens, and its soft values are low.

        loss_t = −φ(r_t) + V_p(s_t) − γV_p(s_{t+1}),  r_t = Q(s_t,a_t) − γV_p(s_{t+1}),  χ²: φ(x) = x − x²/(4α)

    Bellman Distill (Yu et al. 2026; IQ-Learn, Garg et al. 2021), as a loss. With φ linear γ cancels and it is −log proj_p π(a_t|s_t), cloning
    on A_p; χ² adds r_t²/(4α). γ = 0 has no temporal content. Order: gauge, clip, V_p. Steps whose token lies outside A_p, and the last step
    of a response cut off by length, contribute 0. The defaults but γ are by measurement (docs/results-fast.md, "Ablations of Bellman
    Distill"); published are alpha .1, gauge max, sampled, no anchor, q_min −10.

    Args:
        alpha: scale of φ in nats, ∞ is linear. The paper's .1 weighs r² far above the likelihood.
        phi, gauge: see ``phi_alpha``, and ``gauged_q`` for c(s) in Q = ℓ − c.
        value_term: ``value_expert`` V − γV' at the expert's steps, others contribute 0; ``v0`` w_t·(−φ(r_t) + [t=0]·V_p(s_0)) where all
            steps of a response count, see ``value_part`` and ``discount_weights``; ``value_mix`` V − γV' at all steps, φ at the expert's.
        phi_on: ``all`` puts the curvature of χ², r²/(4α), on all steps; what is linear in φ stays on the expert's. ``value_mix`` needs it,
            or a Q that is bounded on both sides: max_support, or q_min under max or lse.
        estimator: φ at the token taken (``sampled``), or averaged over proj_p π* (``expected``), where untaken tokens share
            the successor of the token taken: less noise, and biased for nonlinear φ.
        terminal: V of the end: 0, or ``absorbing`` r_max/(1−γ) where the expert ended, r_max = argmax φ (χ² 2α, tv α/2; γ < 1).
        q_min: Q is clipped below at it (None: no clip). Gradient that would raise a clipped Q passes.
    """
    q_t, clipped_t = _clipped_q(steps, gauge, q_min)
    v_t = soft_value(q_t, steps.legal_t)
    expert_t = expert_flags(steps, required=_mixed(value_term, phi_on))
    end = 0.0 if terminal == "zero" else r_max(phi, alpha) / (1.0 - gamma)
    backup_t = torch.where(expert_t, steps.discounted_value(v_t, gamma, end), steps.discounted_value(v_t, gamma))
    reward_t = take(q_t, steps.a_t) - backup_t
    rewards = reward_t.unsqueeze(-1) if estimator == "sampled" else q_t - backup_t.unsqueeze(-1)
    first_t = _mean(_first_term(rewards, expert_t.unsqueeze(-1), phi, alpha, phi_on), steps, estimator)
    loss_t = value_part(v_t, backup_t, steps, expert_t, value_term) - first_t
    if value_term == "v0":
        loss_t = discount_weights(steps.mask_t, gamma, v_t.dtype) * loss_t
    metrics = td_metrics(steps, take(q_t, steps.a_t), v_t, reward_t, error_t=reward_t)
    metrics["td/clipped_fraction"] = clipped_t.sum(-1) / steps.legal_t.sum(-1).clamp(min=1).to(v_t.dtype)
    if phi in MARGIN:
        metrics["phi/extended_fraction"] = _extended_fraction(rewards, steps, expert_t, phi, alpha, estimator)
    return ObjectiveOutput(torch.where(steps.counted_t, loss_t, 0.0), metrics)


def _clipped_q(steps: Steps, gauge: Gauge, q_min: float | None) -> tuple[Float[Tensor, "B T K"], Bool[Tensor, "B T K"]]:
    """Return Q on A_p, clipped below at ``q_min``, and which candidates were clipped."""
    q_t = gauged_q(steps, gauge)
    if q_min is None:
        return q_t, torch.zeros_like(steps.legal_t)
    return clip_below(q_t, q_min), steps.legal_t & (q_t < q_min)


def _first_term(
    rewards: Float[Tensor, "B T J"], expert: Bool[Tensor, "B T 1"], phi: Phi, alpha: float, phi_on: PhiOn
) -> Float[Tensor, "B T J"]:
    """Return φ(r) at the expert's steps; at others the curvature φ(r) − r, or 0."""
    value = phi_alpha(rewards, phi, alpha)
    return torch.where(expert, value, value - rewards if phi_on == "all" else 0.0)


def _mean(x: Float[Tensor, "B T J"], steps: Steps, estimator: Estimator) -> Float[Tensor, "B T"]:
    return x.squeeze(-1) if estimator == "sampled" else expectation(project(steps.teacher_logp_t, steps.legal_t), x, steps.legal_t)


def _extended_fraction(
    rewards: Float[Tensor, "B T J"], steps: Steps, expert_t: Bool[Tensor, "B T"], phi: Phi, alpha: float, estimator: Estimator
) -> Float[Tensor, "B T"]:
    """Return the share of the rewards at which φ is continued by its tangent, weighed as in the loss; NaN where a step pays no φ."""
    share_t = _mean(extended(rewards, phi, alpha).to(rewards.dtype), steps, estimator)
    return torch.where(steps.counted_t & expert_t, share_t, torch.nan)


def _mixed(value_term: ValueTerm, phi_on: PhiOn) -> bool:
    return value_term == "value_mix" or phi_on == "all"


def _needs(*, gauge: Gauge, value_term: ValueTerm, phi_on: PhiOn, **_: object) -> frozenset[str]:
    other = {"other"} if _mixed(value_term, phi_on) else set()
    return GAUGE_NEEDS[gauge] | {"expert"} | other


def _check(
    *,
    terminal: Terminal,
    phi: Phi,
    phi_on: PhiOn,
    alpha: float,
    gamma: float,
    value_term: ValueTerm,
    gauge: Gauge,
    q_min: float | None,
    **_: object,
) -> None:
    bounded = gauge == "max_support" or (gauge in ("max", "lse") and q_min is not None)
    if value_term == "value_mix" and not bounded and (phi_on == "expert" or math.isinf(alpha)):
        raise ConfigError(
            f"value_term='value_mix' with phi_on={phi_on!r}, alpha={alpha}, gauge={gauge!r} and q_min={q_min} has no lower bound: the "
            "student's steps pay V − γV' and nothing holds V. Use phi_on='all' with a finite alpha, or gauge='max' or 'lse' with a q_min "
            "(such as -10.0)."
        )
    if phi_on == "all" and phi != "chi2":
        raise ConfigError(f"phi_on='all' spreads the squared part of χ² over all steps, which phi={phi!r} does not have: use phi='chi2'.")
    if terminal == "absorbing":
        r_max(phi, alpha)
        if gamma >= 1.0:
            raise ConfigError("terminal='absorbing' is worth r_max/(1−γ) and needs gamma < 1, e.g. 0.99.")


OBJECTIVE = Objective(fn=iq_learn, needs=_needs, check=_check, anchor="tail")
