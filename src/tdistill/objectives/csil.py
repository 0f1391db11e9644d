"""Learn by coherent soft imitation on the top-p tokens: soft Q-learning on the reward that the teacher's policy defines."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput
from tdistill.objectives.parts.anchor import Anchor
from tdistill.objectives.parts.gauge import FreeGauge
from tdistill.objectives.parts.transition import td_needs, td_output, transitions


def csil(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    gauge: FreeGauge = "learned",
    stop_target: bool = True,
    target_network: bool = False,
    anchor: Anchor = "none",
    anchor_weight: NonNegative = 1.0,
) -> ObjectiveOutput:
    """loss_t = ½(Q(s_t,a_t) − sg(r_t + γV_p(s_{t+1})))²,  r_t = log proj_p π*(a_t|s_t).

    Soft Q-learning on the reward for which the teacher is soft-optimal with V ≡ 0: coherent soft imitation learning (Watson et al.
    2023) with the entropy in place of their KL to a prior. So the teacher as student with v ≡ 0 under the gauge ``learned`` pays 0
    with gradient 0, at every γ. γ = 0 regresses log-probabilities and has no temporal content. Steps whose token lies outside A_p,
    and the last step of a response cut off by length, contribute 0.

    Args:
        gauge: ``learned`` Q = log proj_p π + v(s), ``none`` Q = the logit. Under the other gauges V_p would be a function of
            the policy alone.
        stop_target: the target carries no gradient (semi-gradient TD); False minimises the squared soft Bellman error itself.
        target_network: read V_p(s_{t+1}) from the Polyak average of the student, which carries no gradient.
        anchor: what holds the student's mass outside A_p, see ``anchor_loss``, times ``anchor_weight``.
    """
    td = transitions(steps, gauge)
    target_t = td.reward_t + gamma * transitions(steps.bootstrap(target_network), gauge).v_tp1
    loss_t = 0.5 * (td.q_t - (target_t.detach() if stop_target else target_t)).square()
    return td_output(steps, td, loss_t, gamma, anchor, anchor_weight)


OBJECTIVE = Objective(fn=csil, needs=td_needs)
