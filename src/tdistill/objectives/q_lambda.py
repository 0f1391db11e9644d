"""Compute Q(λ) on the top-p tokens: ``csil`` with a target that looks several steps ahead."""

from tdistill.mdp.bellman import lambda_return, next_value
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput, UnitInterval
from tdistill.objectives.parts.anchor import Anchor
from tdistill.objectives.parts.gauge import FreeGauge
from tdistill.objectives.parts.transition import td_needs, td_output, transitions


def q_lambda(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    lambda_: UnitInterval = 0.95,
    gauge: FreeGauge = "learned",
    stop_target: bool = True,
    target_network: bool = False,
    anchor: Anchor = "none",
    anchor_weight: NonNegative = 1.0,
) -> ObjectiveOutput:
    """loss_t = ½(Q(s_t,a_t) − sg G_t)²,  G_t = r_t + γ[V_p(s_{t+1}) + λ(G_{t+1} − Q(s_{t+1},a_{t+1}))],  r_t = log proj_p π*(a_t|s_t).

    The off-policy corrected return of Harutyunyan et al. (2016) with soft values: since V_p = E_{proj_p π}[Q − log proj_p π], each
    correction compares the token taken with what the student would take, so no importance ratio is needed. G(terminal) = 0. The trace
    is cut (λ = 0 for that step) before a token outside A_p and before the last step of a cut-off. λ = 0 is ``csil``; λ = 1 sums all
    rewards: on support G_t = r_t + Σ_{k≥1} γ^k (r_{t+k} − log proj_p π(a_{t+k}|s_{t+k})).

    Args:
        lambda_: share of the longer return, in [0, 1].
        gauge: as for ``csil``.
        stop_target: G carries no gradient.
        target_network: read V_p and Q of later steps from the Polyak average of the student, which carries no gradient.
        anchor: what holds the student's mass outside A_p, see ``anchor_loss``, times ``anchor_weight``.
    """
    td = transitions(steps, gauge)
    trace_t = lambda_ * td.counts_t.to(td.q_t.dtype)
    later = transitions(steps.bootstrap(target_network), gauge)
    q_tp1, trace_tp1 = next_value(later.q_t, steps.terminal_t), next_value(trace_t, steps.terminal_t)
    return_t = lambda_return(td.reward_t, later.v_tp1, q_tp1, trace_tp1, gamma)
    loss_t = 0.5 * (td.q_t - (return_t.detach() if stop_target else return_t)).square()
    return td_output(steps, td, loss_t, gamma, anchor, anchor_weight)


OBJECTIVE = Objective(fn=q_lambda, needs=td_needs)
