"""Compute the actor-critic divergence: each token is also credited with the divergence of the states after it."""

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import lambda_return
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, Positive, UnitInterval
from tdistill.objectives.parts.divergence import DivergenceName, divergence
from tdistill.objectives.parts.policy_gradient import centred_reward, log_policy, truncated_ratio
from tdistill.objectives.parts.support import Support, distributions, support_needs


def actor_critic(
    steps: Steps,
    *,
    gamma: Gamma = 0.9,
    lambda_: UnitInterval = 0.95,
    rho_max: Positive = 1.0,
    value_coef: NonNegative = 0.5,
    center: UnitInterval = 1.0,
    cost: DivergenceName = "reverse_kl",
    support: Support = "tail",
) -> ObjectiveOutput:
    """Follow the policy gradient of the discounted divergence along the student's own text, E_π Σ_t γ^t D_t, with a critic.

        loss_t = D_t − γρ_t·sg(Ĝ_{t+1} − u(s_t))·log π(a_t|s_t) + value_coef·½(u(s_t) − sg û_t)²,  D_t = KL(q‖p)_t
        Ĝ_t = −D_t + γ[u(s_t) + λρ_t(Ĝ_{t+1} − u(s_t))],  Ĝ = 0 after EOS;      û_t = u(s_t) + ρ_t(Ĝ_{t+1} − u(s_t))

    The value head u(s_t) predicts the part of the return that a_t decides, −D_{t+1} − γD_{t+2} − …, without −D_t, whose gradient is exact.
    Ĝ and û are V-trace with both truncations at ``rho_max`` (Espeholt et al. 2018, eq. 1). With ρ = 1, û_t = Ĝ_{t+1} is the λ-return. At the
    last state of a response cut off by length the return bootstraps, Ĝ_t = −D_t + γu(s_t), and its step has the term D_t alone. A token
    outside A_p counts as any other: log π is over the vocabulary. γ = 0 has the gradient of the divergence alone. On-policy with λ = 1 the
    expected gradient is that of the text's total: for KL MiniLLM's single-step and long-term terms (Gu et al. 2024).

    Args:
        gamma: .9 by measurement (docs/results-fast.md); at .99 the noise of the returns is larger than the gain.
        lambda_: 0 is one step, 1 the whole return, in [0, 1].
        rho_max: ρ_t = min(rho_max, π(a_t)/behaviour(a_t)); ``inf`` does not truncate. It is 1 where nobody sampled the token (human text).
        value_coef: weight of the critic's loss. 0.5 as in Espeholt et al. (2018).
        center: share of the response's mean D that returns leave out, in [0, 1]. At 0 ending a text ends its cost, and a weak student
            lowers the total best by ending early. At 1, the default by measurement (docs/results-fast.md), ending early saves nothing.
            Above 0 the gradient is biased by the order of 1/T.
        cost: D, with the arguments' defaults: ``reverse_kl``, ``jsd`` (Jensen-Shannon) or ``skew_kl``.
        support: support of D, as for ``reverse_kl``.
    """
    assert steps.value_t is not None
    exists_t, acts_t = steps.exists_t, steps.has_successor_t
    d_t = divergence(*distributions(steps, support, 1.0), cost)
    u_t = torch.where(exists_t, steps.value_t, 0.0)
    rho_t = torch.where(acts_t, truncated_ratio(steps, rho_max), 0.0)
    advantage_t = _advantage(steps, centred_reward(steps, d_t.detach(), center), u_t.detach(), lambda_ * rho_t, gamma)
    critic_t = 0.5 * (u_t - (u_t.detach() + rho_t * advantage_t)).square()
    loss_t = d_t + torch.where(acts_t, -gamma * rho_t * advantage_t * log_policy(steps) + value_coef * critic_t, 0.0)
    metrics = {
        "td/v": torch.where(exists_t, u_t, torch.nan),
        "td/reward": torch.where(exists_t, -d_t, torch.nan),
        "td/bellman_error": torch.where(acts_t, advantage_t.square(), torch.nan),
        "td/rho": torch.where(acts_t, rho_t, torch.nan),
        "td/off_support_fraction": (steps.a_t < 0).to(u_t.dtype),
    }
    return ObjectiveOutput(loss_t, metrics)


def _advantage(
    steps: Steps, reward_t: Float[Tensor, "B T"], u_t: Float[Tensor, "B T"], trace_t: Float[Tensor, "B T"], gamma: float
) -> Float[Tensor, "B T"]:
    """Return Ĝ_{t+1} − u(s_t).

    u(s_t) is the value of what a_t leads to, so that it is discounted at the last state too. The end is in Ĝ_{t+1} = 0.
    """
    return steps.later(lambda_return(reward_t, torch.full_like(u_t, gamma), u_t, u_t, trace_t)) - u_t


def _needs(*, support: Support, **_: object) -> frozenset[str]:
    return support_needs(support=support) | {"value", "taken", "log_z", "behaviour"}


OBJECTIVE = Objective(fn=actor_critic, needs=_needs)
