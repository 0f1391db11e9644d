"""Compute the mean actor-critic divergence: every candidate, not only the token taken, is credited with the divergence after it."""

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import expectation, lambda_return, project, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, UnitInterval
from tdistill.objectives.parts.divergence import DivergenceName, divergence
from tdistill.objectives.parts.policy_gradient import centred_reward, truncated_ratio
from tdistill.objectives.parts.support import Support, distributions, support_needs


def mean_actor_critic(
    steps: Steps,
    *,
    gamma: Gamma = 0.9,
    lambda_: UnitInterval = 0.95,
    value_coef: NonNegative = 0.5,
    center: UnitInterval = 1.0,
    cost: DivergenceName = "reverse_kl",
    support: Support = "tail",
) -> ObjectiveOutput:
    """Follow the policy gradient of E_π Σ_t γ^t D_t, as ``actor_critic``, but summed over the candidates.

        loss_t = D_t − γ Σ_{a∈A_p} π(a|s_t)·sg(w(s_t,a) − w̄_t) + value_coef·½(w(s_t,a_t) − sg Ĝ_{t+1})²,  w̄_t = Σ_{A_p} proj_p π(a) w(s_t,a)
        Ĝ_t = −D_t + γ[w̄_t + λ·min(1, ρ_t)·(Ĝ_{t+1} − w(s_t,a_t))],  Ĝ = 0 after EOS,  ρ_t = π(a_t)/behaviour(a_t)

    The sum (Allen et al. 2017, *Mean Actor Critic*; Ciosek & Whiteson 2018, *Expected Policy Gradients*) removes the noise that the sampled
    token brings into the actor, and needs no ratio where another policy wrote. The value head's w(s,a) predicts what a token leads to,
    −D_{t+1} − γD_{t+2} − …, 0 after EOS. Tokens off A_p count as w̄_t. It learns at the token taken, by Retrace (Munos et al. 2016). A token
    off A_p cuts the trace and teaches nothing. So does the last token of a response cut off by length, where Ĝ_t = −D_t + γw̄_t. γ = 0 has
    the gradient of D by itself. On the student's own text, with A_p the vocabulary and w exact, the expected gradient is that of the text's
    total.

    Args:
        lambda_: 0 is one step, 1 the whole return, in [0, 1].
        value_coef: weight of the critic's loss.
        center, cost, support: as for ``actor_critic``. The candidates are those of A_p under each support.
    """
    assert steps.action_value_t is not None
    assert steps.log_z_t is not None
    d_t = divergence(*distributions(steps, support, 1.0), cost)
    exists_t, legal_t = steps.exists_t, steps.legal_t
    w_t, policy = steps.action_value_t.detach(), project(steps.q_t.detach(), legal_t)
    mean_t = expectation(policy, w_t, legal_t)
    advantage_t = torch.where(legal_t, w_t - mean_t.unsqueeze(-1), 0.0)
    actor_t = expectation(steps.q_t - steps.log_z_t.unsqueeze(-1), advantage_t, legal_t)
    trace_t = torch.where(steps.counted_t, lambda_ * truncated_ratio(steps, 1.0), 0.0)
    target_t = _retrace(steps, centred_reward(steps, d_t.detach(), center), mean_t, trace_t, gamma)
    error_t = torch.where(steps.counted_t, take(steps.action_value_t, steps.a_t) - target_t, 0.0)
    loss_t = d_t + torch.where(exists_t, -gamma * actor_t + value_coef * 0.5 * error_t.square(), 0.0)
    metrics = {
        "td/v": torch.where(exists_t, mean_t, torch.nan),
        "td/reward": torch.where(exists_t, -d_t, torch.nan),
        "td/bellman_error": torch.where(steps.counted_t, error_t.square(), torch.nan),
        "td/advantage_std": torch.where(exists_t, expectation(policy, advantage_t.square(), legal_t).sqrt(), torch.nan),
        "td/trace": torch.where(steps.counted_t, trace_t, torch.nan),
        "td/off_support_fraction": (steps.a_t < 0).to(d_t.dtype),
    }
    return ObjectiveOutput(loss_t, metrics)


def _retrace(
    steps: Steps, reward_t: Float[Tensor, "B T"], mean_t: Float[Tensor, "B T"], trace_t: Float[Tensor, "B T"], gamma: float
) -> Float[Tensor, "B T"]:
    """Return Ĝ_{t+1}, the target of w(s_t,a_t). As in ``actor_critic`` w̄_t is discounted at every state, and the end is in Ĝ_{t+1} = 0."""
    assert steps.action_value_t is not None
    taken_t = torch.where(steps.counted_t, take(steps.action_value_t.detach(), steps.a_t), 0.0)
    return steps.later(lambda_return(reward_t, torch.full_like(reward_t, gamma), mean_t, taken_t, trace_t))


def _needs(*, support: Support, **_: object) -> frozenset[str]:
    return support_needs(support=support) | {"action_value", "taken", "log_z", "behaviour"}


OBJECTIVE = Objective(fn=mean_actor_critic, needs=_needs)
