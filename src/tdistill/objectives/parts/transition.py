"""Build transitions on A_p whose reward is the teacher's log-probability, for ``csil``, ``q_lambda`` and ``path_consistency``."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.bellman import bellman_error, next_value, project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import ObjectiveOutput
from tdistill.objectives.parts.anchor import ANCHOR_NEEDS, Anchor, anchor_loss
from tdistill.objectives.parts.counted import counted, td_metrics
from tdistill.objectives.parts.gauge import GAUGE_NEEDS, Gauge, gauged_q


@dataclass(frozen=True)
class Transitions:
    """Hold Q(s_t,a_t), V_p(s_t), V_p(s_{t+1}) and r_t = log proj_p π*(a_t); ``counts_t``: on support, and with a successor."""

    q_t: Float[Tensor, "B T"]
    v_t: Float[Tensor, "B T"]
    v_tp1: Float[Tensor, "B T"]
    reward_t: Float[Tensor, "B T"]
    counts_t: Bool[Tensor, "B T"]


def transitions(steps: Steps, gauge: Gauge) -> Transitions:
    """Read the transitions of a batch under a gauge; V_p(terminal) = 0."""
    q_t = gauged_q(steps, gauge)
    v_t = soft_value(q_t, steps.legal_t)
    return Transitions(
        q_t=take(q_t, steps.a_t),
        v_t=v_t,
        v_tp1=next_value(v_t, steps.terminal_t),
        reward_t=take(project(steps.teacher_logp_t, steps.legal_t), steps.a_t),
        counts_t=counted(steps),
    )


def td_error(td: Transitions, gamma: float) -> Float[Tensor, "B T"]:
    """Return Q(s_t,a_t) − γV_p(s_{t+1}) − r_t: the reward that Q implies minus the teacher's; 0 where a step doesn't count."""
    return torch.where(td.counts_t, bellman_error(td.q_t, td.v_tp1, gamma) - td.reward_t, 0.0)


def td_output(
    steps: Steps, td: Transitions, loss_t: Float[Tensor, "B T"], gamma: float, anchor: Anchor, anchor_weight: float
) -> ObjectiveOutput:
    """Return ``loss_t`` at the steps that count, the anchor at all steps, and the metrics."""
    loss_t = torch.where(td.counts_t, loss_t, 0.0)
    if anchor != "none":
        loss_t = loss_t + anchor_weight * anchor_loss(steps, anchor)
    metrics = td_metrics(steps, td.q_t, td.v_t, td.reward_t, td_error(td, gamma))
    return ObjectiveOutput(loss_t, {k: v.detach() for k, v in metrics.items()})


def td_needs(*, gauge: Gauge, anchor: Anchor, target_network: bool = False, **_: object) -> frozenset[str]:
    """Return what gauge, anchor and target network need from the head."""
    return GAUGE_NEEDS[gauge] | ANCHOR_NEEDS[anchor] | (frozenset({"target"}) if target_network else frozenset())
