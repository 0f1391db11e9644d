"""Compute the actor-critic divergence: each token is also credited with the divergence of the states after it."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.bellman import has_successor, lambda_return, next_value
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, Positive, UnitInterval
from tdistill.objectives.jsd import jensen_shannon
from tdistill.objectives.parts.support import Support, distributions, kl, support_needs
from tdistill.objectives.skew_kl import SKEW

Cost = Literal["reverse_kl", "jsd", "skew_kl"]


def actor_critic(
    steps: Steps,
    *,
    gamma: Gamma = 0.9,
    lambda_: UnitInterval = 0.95,
    rho_max: Positive = 1.0,
    value_coef: NonNegative = 0.5,
    center: UnitInterval = 1.0,
    cost: Cost = "reverse_kl",
    support: Support = "tail",
) -> ObjectiveOutput:
    """loss_t = D_t − γρ_t·sg(Ĝ_{t+1} − u(s_t))·log π(a_t|s_t) + value_coef·½(u(s_t) − sg û_t)²,  D_t = KL(q‖p)_t.

    The policy gradient of the discounted divergence along the student's own text, E_π Σ_t γ^t D_t, with a critic. The value head
    u(s_t) predicts the part of the return that a_t decides: −D_{t+1} − γD_{t+2} − …, not −D_t, whose gradient is exact. The returns are

        Ĝ_t = −D_t + γ[u(s_t) + λρ_t(Ĝ_{t+1} − u(s_t))],  Ĝ = 0 after EOS;      û_t = u(s_t) + ρ_t(Ĝ_{t+1} − u(s_t)),

    V-trace with both truncations at ``rho_max`` (Espeholt et al. 2018, eq. 1); with ρ = 1, û_t = Ĝ_{t+1} is the λ-return. At the last
    state of a response cut off by length the return bootstraps, Ĝ_t = −D_t + γu(s_t), and its step has the term D_t alone. A token
    outside A_p counts as any other: log π is over the vocabulary. γ = 0 has the policy gradient of the divergence by itself; on-policy
    and λ = 1 the expected gradient is that of the text's total: for KL MiniLLM's single-step and long-term terms (Gu et al. 2024).

    Args:
        gamma: .9 by measurement (docs/results-fast.md); at .99 the noise of the returns eats the gain.
        lambda_: 0 is one step, 1 the whole return, in [0, 1].
        rho_max: ρ_t = min(rho_max, π(a_t)/behaviour(a_t)); ``inf`` does not truncate. Where nobody sampled the token (human text) the
            ratio counts as 1.
        value_coef: weight of the critic's loss. 0.5 as in Espeholt et al. (2018).
        center: share of the response's mean D that returns leave out, in [0, 1]. At 0 ending a text ends its cost, which is how a weak
            student lowers the total best; at 1, the default by measurement (docs/results-fast.md), ending early saves nothing.
            Above 0 it is biased by the order of 1/T, and no longer the gradient of the texts' total.
        cost: D, with the arguments' defaults: ``reverse_kl``, ``jsd`` (Jensen-Shannon) or ``skew_kl``.
        support: support of D, as for ``reverse_kl``.
    """
    assert steps.value_t is not None
    assert steps.taken_logit_t is not None
    assert steps.log_z_t is not None
    d_t = divergence(*distributions(steps, support, 1.0), cost)
    acts_t = has_successor(steps.exists_t, steps.terminal_t)
    u_t = torch.where(steps.exists_t, steps.value_t, 0.0)
    logp_t = steps.taken_logit_t - steps.log_z_t
    rho_t = torch.where(acts_t, truncated_ratio(steps, rho_max), 0.0)
    stopped_u_t = u_t.detach()
    cost_t = d_t.detach()
    reward_t = torch.where(steps.exists_t, center * response_mean(cost_t, steps.exists_t) - cost_t, 0.0)
    return_t = lambda_return(reward_t, stopped_u_t, stopped_u_t, lambda_ * rho_t, gamma)
    advantage_t = next_value(return_t, steps.terminal_t) - stopped_u_t
    critic_t = 0.5 * (u_t - (stopped_u_t + rho_t * advantage_t)).square()
    loss_t = d_t + torch.where(acts_t, -gamma * rho_t * advantage_t * logp_t + value_coef * critic_t, 0.0)
    metrics = {
        "td/v": torch.where(steps.exists_t, u_t, torch.nan),
        "td/reward": torch.where(steps.exists_t, -d_t, torch.nan),
        "td/bellman_error": torch.where(acts_t, advantage_t.square(), torch.nan),
        "td/rho": torch.where(acts_t, rho_t, torch.nan),
        "td/off_support_fraction": (steps.a_t < 0).to(u_t.dtype),
    }
    return ObjectiveOutput(loss_t, {k: v.detach() for k, v in metrics.items()})


def divergence(p: Float[Tensor, "B T J"], q: Float[Tensor, "B T J"], legal: Bool[Tensor, "B T J"], cost: Cost) -> Float[Tensor, "B T"]:
    """Return D of teacher p and student q, from log-probs over legal slots."""
    if cost == "jsd":
        return jensen_shannon(p, q, legal)
    return kl(q, p, legal) if cost == "reverse_kl" else kl(p, q, legal, SKEW)


def response_mean(x_t: Float[Tensor, "B T"], exists_t: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """Return the mean over the states of each response."""
    return torch.where(exists_t, x_t, 0.0).sum(-1, keepdim=True) / exists_t.sum(-1, keepdim=True).clamp(min=1)


def truncated_ratio(steps: Steps, rho_max: float) -> Float[Tensor, "B T"]:
    """Return ρ_t = min(rho_max, π(a_t|s_t)/behaviour(a_t|s_t)), without gradient; the ratio is 1 where the behaviour is NaN."""
    assert steps.taken_logit_t is not None
    assert steps.log_z_t is not None
    assert steps.behaviour_logp_t is not None
    logp_t, behaviour_t = (steps.taken_logit_t - steps.log_z_t).detach(), steps.behaviour_logp_t
    log_ratio_t = torch.where(behaviour_t.isnan(), 0.0, logp_t - behaviour_t)
    return log_ratio_t.clamp(max=math.log(rho_max)).exp()


def _needs(*, support: Support, **_: object) -> frozenset[str]:
    return support_needs(support=support) | {"value", "taken", "log_z", "behaviour"}


OBJECTIVE = Objective(fn=actor_critic, needs=_needs)
