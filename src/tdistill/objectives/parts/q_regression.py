"""Compute soft Q-learning on two constant rewards, one for the expert's steps and one for others: the shared part of ``sqil`` and ``ls_iq``."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import expectation, project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import ObjectiveOutput
from tdistill.objectives.parts.expert import expert_flags
from tdistill.objectives.parts.gauge import GAUGE_NEEDS, FreeGauge, gauged_q
from tdistill.objectives.parts.td_metrics import td_metrics
from tdistill.runtime.errors import ConfigError

Other = Literal["untaken", "rollouts"]
RegressionTerminal = Literal["absorbing", "zero"]


@dataclass(frozen=True)
class Regression:
    """Hold what a regression to two rewards depends on."""

    rewards: tuple[float, float]  # r_E of the expert's steps, r_O of others
    gamma: float
    terminal: RegressionTerminal  # V after the end: r/(1−γ) (absorbing) or 0
    other: Other
    gauge: FreeGauge
    stop_target: bool  # no gradient through V'
    target_network: bool  # V' is the Polyak average's, without gradient
    other_weight: float = 1.0
    bound: float = math.inf  # V' is clipped to ±bound

    def backup_t(self, steps: Steps, v_t: Float[Tensor, "B T"], reward: float) -> Float[Tensor, "B T"]:
        """Return γ_t·V'(s_{t+1}) for steps that earn ``reward``."""
        end = reward / (1.0 - self.gamma) if self.terminal == "absorbing" else 0.0
        backup_t = steps.discounted_value(v_t.clamp(-self.bound, self.bound), self.gamma, end)
        return backup_t.detach() if self.stop_target else backup_t


def q_regression(steps: Steps, settings: Regression) -> ObjectiveOutput:
    """Regress Q to the reward of a step plus the discounted value of what follows.

        loss_t = (Q(s_t,a_t) − (r_E + γV'))² at the expert's steps + other_weight·others_t,  V' = V_p(s_{t+1}) clipped to ±bound

    ``rollouts``: others_t = (Q(s_t,a_t) − (r_O + γV'))² at the steps that are not the expert's.  ``untaken``: others_t =
    Σ_{b∈A_p, b≠a_t} proj_p π(b)·(Q(s_t,b) − (r_O + γV'))² at the expert's steps, the weights without gradient; the steps
    of others contribute 0. Where an untaken token leads is unknown. So it shares the successor of the token taken; at the end it
    gets the end of others.
    """
    expert_t, (expert_reward, other_reward) = expert_flags(steps, required=True), settings.rewards
    q_t = gauged_q(steps, settings.gauge)
    v_t, taken_t = soft_value(q_t, steps.legal_t), take(q_t, steps.a_t)
    later_v_t = soft_value(gauged_q(steps.bootstrap(True), settings.gauge), steps.legal_t) if settings.target_network else v_t
    expert_backup_t, other_backup_t = (settings.backup_t(steps, later_v_t, reward) for reward in settings.rewards)
    reward_t = taken_t - torch.where(expert_t, expert_backup_t, other_backup_t)
    error_t = torch.where(expert_t, reward_t - expert_reward, reward_t - other_reward)
    if settings.other == "rollouts":
        loss_t = torch.where(expert_t, error_t.square(), settings.other_weight * error_t.square())
    else:
        untaken = steps.legal_t & (torch.arange(q_t.shape[-1], device=q_t.device) != steps.a_t.unsqueeze(-1))
        errors = q_t - (other_reward + other_backup_t).unsqueeze(-1)
        others_t = expectation(project(q_t, steps.legal_t).detach(), errors.square(), untaken)
        loss_t = torch.where(expert_t, error_t.square() + settings.other_weight * others_t, 0.0)
    return ObjectiveOutput(torch.where(steps.counted_t, loss_t, 0.0), td_metrics(steps, taken_t, v_t, reward_t, error_t))


def q_regression_needs(*, other: Other, gauge: FreeGauge, target_network: bool, **_: object) -> frozenset[str]:
    """Return the needs: the flags of the expert's steps, steps of others if the data must have them, those of gauge and target network."""
    own = {"expert"} | ({"other"} if other == "rollouts" else set()) | ({"target"} if target_network else set())
    return GAUGE_NEEDS[gauge] | own


def check_discount(*, terminal: RegressionTerminal, gamma: float, **_: object) -> None:
    """Check that an absorbing end has a discount.

    Raises:
        ConfigError: ``terminal="absorbing"`` with γ = 1.
    """
    if terminal == "absorbing" and gamma >= 1.0:
        raise ConfigError("terminal='absorbing' is worth r/(1−γ) and needs gamma < 1, e.g. 0.99.")
