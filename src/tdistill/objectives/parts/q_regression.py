"""Compute soft Q-learning on two constant rewards, one for the expert's steps and one for others: the shared part of ``sqil`` and ``ls_iq``."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import expectation, next_value, project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import ObjectiveOutput
from tdistill.objectives.parts.anchor import ANCHOR_NEEDS, Anchor, anchor_loss
from tdistill.objectives.parts.counted import counted, expert_flags, td_metrics
from tdistill.objectives.parts.gauge import GAUGE_NEEDS, FreeGauge, gauged_q
from tdistill.runtime.errors import ConfigError

Other = Literal["untaken", "rollouts"]
RegressionTerminal = Literal["absorbing", "zero"]


def q_regression(
    steps: Steps,
    *,
    rewards: tuple[float, float],
    gamma: float,
    terminal: RegressionTerminal,
    other: Other,
    gauge: FreeGauge,
    stop_target: bool,
    target_network: bool,
    anchor: Anchor,
    anchor_weight: float,
    other_weight: float = 1.0,
    bound: float = math.inf,
) -> ObjectiveOutput:
    """loss_t = (Q(s_t,a_t) − (r_E + γV'))² at the expert's steps + other_weight·others_t,  V' = V_p(s_{t+1}) clipped to ±bound.

    ``rollouts``: others_t = (Q(s_t,a_t) − (r_O + γV'))² at the steps that are not the expert's.  ``untaken``: others_t =
    Σ_{b∈A_p, b≠a_t} proj_p π(b)·(Q(s_t,b) − (r_O + γV'))² at the expert's steps, the weights without gradient; the steps
    of others contribute 0. Where an untaken token leads is unknown, so it shares the successor of the token taken, but for the end:
    there it gets the end of others. ``target_network``: V' is the Polyak average's, without gradient.
    V(terminal) = r/(1−γ) (``absorbing``) or 0.

    Args:
        rewards: (r_E, r_O), of the expert's steps and of others.
    """
    expert_t = expert_flags(steps, required=True)
    q_t = gauged_q(steps, gauge)
    v_t, taken_t = soft_value(q_t, steps.legal_t), take(q_t, steps.a_t)
    later_v_t = soft_value(gauged_q(steps.bootstrap(True), gauge), steps.legal_t) if target_network else v_t

    def backup(reward: float) -> Float[Tensor, "B T"]:
        end = reward / (1.0 - gamma) if terminal == "absorbing" else 0.0
        v_tp1 = next_value(later_v_t, steps.terminal_t, end).clamp(-bound, bound)
        return gamma * (v_tp1.detach() if stop_target else v_tp1)

    expert_backup_t, other_backup_t = (backup(reward) for reward in rewards)
    reward_t = taken_t - torch.where(expert_t, expert_backup_t, other_backup_t)
    error_t = torch.where(expert_t, reward_t - rewards[0], reward_t - rewards[1])
    if other == "rollouts":
        loss_t = torch.where(expert_t, error_t.square(), other_weight * error_t.square())
    else:
        untaken = steps.legal_t & (torch.arange(q_t.shape[-1], device=q_t.device) != steps.a_t.unsqueeze(-1))
        errors = q_t - (rewards[1] + other_backup_t).unsqueeze(-1)
        others_t = expectation(project(q_t, steps.legal_t).detach(), errors.square(), untaken)
        loss_t = torch.where(expert_t, error_t.square() + other_weight * others_t, 0.0)
    loss_t = torch.where(counted(steps), loss_t, 0.0)
    if anchor != "none":
        loss_t = loss_t + anchor_weight * anchor_loss(steps, anchor)
    metrics = td_metrics(steps, taken_t, v_t, reward_t, error_t)
    return ObjectiveOutput(loss_t, {k: v.detach() for k, v in metrics.items()})


def q_regression_needs(*, other: Other, gauge: FreeGauge, anchor: Anchor, target_network: bool, **_: object) -> frozenset[str]:
    """Return the needs: the flags of the expert's steps, steps of others if the data must have them, and those of gauge, anchor and target
    network.
    """
    own = {"expert"} | ({"other"} if other == "rollouts" else set()) | ({"target"} if target_network else set())
    return GAUGE_NEEDS[gauge] | ANCHOR_NEEDS[anchor] | own


def check_discount(*, terminal: RegressionTerminal, gamma: float, **_: object) -> None:
    """Check that an absorbing end has a discount.

    Raises:
        ConfigError: ``terminal="absorbing"`` with γ = 1.
    """
    if terminal == "absorbing" and gamma >= 1.0:
        raise ConfigError("terminal='absorbing' is worth r/(1−γ) and needs gamma < 1, e.g. 0.99.")
