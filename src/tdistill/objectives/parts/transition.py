"""Build transitions on A_p whose reward is the teacher's log-probability, for ``csil``, ``q_lambda`` and ``path_consistency``."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import ObjectiveOutput
from tdistill.objectives.parts.gauge import GAUGE_NEEDS, Gauge, gauged_q
from tdistill.objectives.parts.policy_gradient import truncated_ratio
from tdistill.objectives.parts.td_metrics import td_metrics


@dataclass(frozen=True)
class Transitions:
    """Hold Q(s_t,a_t), V_p(s_t), γ_t·V_p(s_{t+1}) and r_t = log proj_p π*(a_t|s_t). V_p is 0 after the end."""

    q_t: Float[Tensor, "B T"]
    v_t: Float[Tensor, "B T"]
    backup_t: Float[Tensor, "B T"]
    reward_t: Float[Tensor, "B T"]


def transitions(steps: Steps, gauge: Gauge, gamma: float) -> Transitions:
    """Read the transitions of a batch under a gauge."""
    q_t = gauged_q(steps, gauge)
    v_t = soft_value(q_t, steps.legal_t)
    return Transitions(
        q_t=take(q_t, steps.a_t),
        v_t=v_t,
        backup_t=steps.discounted_value(v_t, gamma),
        reward_t=take(project(steps.teacher_logp_t, steps.legal_t), steps.a_t),
    )


def td_error(steps: Steps, td: Transitions) -> Float[Tensor, "B T"]:
    """Return Q(s_t,a_t) − γ_t·V_p(s_{t+1}) − r_t: the reward that Q implies minus the teacher's. It is 0 where a step doesn't count."""
    return torch.where(steps.counted_t, td.q_t - td.backup_t - td.reward_t, 0.0)


def importance_weight(steps: Steps, rho_max: float | None) -> Float[Tensor, "B T"] | None:
    """Return ρ_t = min(rho_max, π(a_t)/behaviour(a_t)) at the steps that count, and 0 elsewhere. None: steps are not weighed."""
    return None if rho_max is None else torch.where(steps.counted_t, truncated_ratio(steps, rho_max), 0.0)


def td_output(steps: Steps, td: Transitions, loss_t: Float[Tensor, "B T"], rho_t: Float[Tensor, "B T"] | None = None) -> ObjectiveOutput:
    """Return ``loss_t``, times ρ_t if it is given, at the steps that count, and the metrics."""
    metrics = td_metrics(steps, td.q_t, td.v_t, td.reward_t, td_error(steps, td))
    if rho_t is not None:
        loss_t = rho_t * loss_t
        metrics["td/rho"] = torch.where(steps.counted_t, rho_t, torch.nan)
    return ObjectiveOutput(torch.where(steps.counted_t, loss_t, 0.0), metrics)


def td_needs(*, gauge: Gauge, target_network: bool = False, rho_max: float | None = None, **_: object) -> frozenset[str]:
    """Return what the gauge, the target network and the importance weight need."""
    target = frozenset({"target"}) if target_network else frozenset()
    ratio = frozenset() if rho_max is None else frozenset({"taken", "log_z", "behaviour"})
    return GAUGE_NEEDS[gauge] | target | ratio
