"""Build transitions on A_p whose reward is the teacher's log-probability, for ``csil``, ``q_lambda`` and ``path_consistency``."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import ObjectiveOutput
from tdistill.objectives.parts.gauge import GAUGE_NEEDS, Gauge, gauged_q
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


def td_output(steps: Steps, td: Transitions, loss_t: Float[Tensor, "B T"]) -> ObjectiveOutput:
    """Return ``loss_t`` at the steps that count, and the metrics."""
    metrics = td_metrics(steps, td.q_t, td.v_t, td.reward_t, td_error(steps, td))
    return ObjectiveOutput(torch.where(steps.counted_t, loss_t, 0.0), metrics)


def td_needs(*, gauge: Gauge, target_network: bool = False, **_: object) -> frozenset[str]:
    """Return what gauge and target network need from the head."""
    return GAUGE_NEEDS[gauge] | (frozenset({"target"}) if target_network else frozenset())
