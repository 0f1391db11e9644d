"""Compute the mean actor-critic divergence: every candidate, not only the token taken, is credited with the divergence after it."""

import torch
from torch import Tensor

from tdistill.mdp.bellman import expectation, has_successor, lambda_return, next_value, project, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.actor_critic import Cost, divergence, response_mean, truncated_ratio
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, UnitInterval
from tdistill.objectives.parts.support import Support, distributions, support_needs


def mean_actor_critic(
    steps: Steps,
    *,
    gamma: Gamma = 0.9,
    lambda_: UnitInterval = 0.95,
    value_coef: NonNegative = 0.5,
    center: UnitInterval = 1.0,
    cost: Cost = "reverse_kl",
    support: Support = "tail",
) -> ObjectiveOutput:
    """loss_t = D_t − γ Σ_{a∈A_p} π(a|s_t)·sg(w(s_t,a) − w̄_t) + value_coef·½(w(s_t,a_t) − sg Ĝ_{t+1})²,  w̄_t = Σ_{A_p} proj_p π(a) w(s_t,a).

    As ``actor_critic``, the policy gradient of E_π Σ_t γ^t D_t, but summed over the candidates (Allen et al. 2017, *Mean Actor
    Critic*; Ciosek & Whiteson 2018, *Expected Policy Gradients*): the token that happened to be taken brings no noise into the
    actor, and no ratio is needed where another policy wrote. The value head's w(s,a) predicts what a token leads to,
    −D_{t+1} − γD_{t+2} − …, 0 after EOS; tokens off A_p count as w̄_t. It learns at the token taken, by Retrace (Munos et al. 2016):

        Ĝ_t = −D_t + γ[w̄_t + λ·min(1, ρ_t)·(Ĝ_{t+1} − w(s_t,a_t))],  Ĝ = 0 after EOS,  ρ_t = π(a_t)/behaviour(a_t).

    A token off A_p cuts the trace and teaches nothing, and so does the last token of a response cut off by length, Ĝ_t = −D_t + γw̄_t.
    γ = 0 has the gradient of D by itself. On the student's own text, with A_p the vocabulary and w exact, the expected gradient is
    that of the text's total.

    Args:
        lambda_: 0 is one step, 1 the whole return, in [0, 1].
        value_coef: weight of the critic's loss.
        center, cost, support: as for ``actor_critic``; the candidates are A_p's under each support.
    """
    assert steps.action_value_t is not None
    assert steps.log_z_t is not None
    d_t = divergence(*distributions(steps, support, 1.0), cost)
    exists_t, legal_t = steps.exists_t, steps.legal_t
    w_t, q_t = steps.action_value_t.detach(), steps.q_t.detach()
    mean_t = expectation(project(q_t, legal_t), w_t, legal_t)
    advantage_t = torch.where(legal_t, w_t - mean_t.unsqueeze(-1), 0.0)
    actor_t = expectation(steps.q_t - steps.log_z_t.unsqueeze(-1), advantage_t, legal_t)
    learns_t = has_successor(exists_t, steps.terminal_t) & (steps.a_t >= 0)
    target_t, trace_t = _retrace(steps, d_t.detach(), mean_t, learns_t, gamma, lambda_, center)
    error_t = torch.where(learns_t, take(steps.action_value_t, steps.a_t) - target_t, 0.0)
    loss_t = d_t + torch.where(exists_t, -gamma * actor_t + value_coef * 0.5 * error_t.square(), 0.0)
    spread_t = expectation(project(q_t, legal_t), advantage_t.square(), legal_t).sqrt()
    metrics = {
        "td/v": torch.where(exists_t, mean_t, torch.nan),
        "td/reward": torch.where(exists_t, -d_t, torch.nan),
        "td/bellman_error": torch.where(learns_t, error_t.square(), torch.nan),
        "td/advantage_std": torch.where(exists_t, spread_t, torch.nan),
        "td/trace": torch.where(learns_t, trace_t, torch.nan),
        "td/off_support_fraction": (steps.a_t < 0).to(d_t.dtype),
    }
    return ObjectiveOutput(loss_t, {k: v.detach() for k, v in metrics.items()})


def _retrace(steps: Steps, d_t: Tensor, mean_t: Tensor, learns_t: Tensor, gamma: float, lambda_: float, center: float) -> tuple[Tensor, Tensor]:
    """Return Ĝ_{t+1}, the target of w(s_t,a_t), and the weight of the trace at each token."""
    assert steps.action_value_t is not None
    reward_t = torch.where(steps.exists_t, center * response_mean(d_t, steps.exists_t) - d_t, 0.0)
    trace_t = torch.where(learns_t, lambda_ * truncated_ratio(steps, 1.0), 0.0)
    taken_t = take(steps.action_value_t.detach(), steps.a_t)
    return_t = lambda_return(reward_t, mean_t, torch.where(learns_t, taken_t, 0.0), trace_t, gamma)
    return next_value(return_t, steps.terminal_t), trace_t


def _needs(*, support: Support, **_: object) -> frozenset[str]:
    return support_needs(support=support) | {"action_value", "taken", "log_z", "behaviour"}


OBJECTIVE = Objective(fn=mean_actor_critic, needs=_needs)
