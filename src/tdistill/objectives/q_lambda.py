"""Learn by Q(λ) on the top-p tokens: ``csil`` with a target that looks several steps ahead."""

from tdistill.mdp.bellman import lambda_return
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, Objective, ObjectiveOutput, Positive, UnitInterval
from tdistill.objectives.parts.gauge import FreeGauge
from tdistill.objectives.parts.transition import importance_weight, td_needs, td_output, transitions


def q_lambda(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    lambda_: UnitInterval = 0.95,
    gauge: FreeGauge = "learned",
    stop_target: bool = True,
    target_network: bool = False,
    rho_max: Positive | None = None,
) -> ObjectiveOutput:
    """Regress Q to the λ-return of the teacher's log-probability as reward.

        loss_t = ρ_t·½(Q(s_t,a_t) − sg G_t)²,  r_t = log proj_p π*(a_t|s_t),  ρ_t = 1 unless ``rho_max`` is given
        G_t = r_t + γ[V_p(s_{t+1}) + λρ_{t+1}(G_{t+1} − Q(s_{t+1},a_{t+1}))],  V_p = 0 after the end

    The off-policy corrected return of Harutyunyan et al. (2016) with soft values. Since V_p = E_{proj_p π}[Q − log proj_p π], each
    correction compares the token taken with what the student would take: near the writer's policy no importance ratio is needed. The trace
    is cut (λ = 0 for that step) before a token outside A_p and before the last step of a cut-off. λ = 0 is ``csil``. λ = 1 sums all
    rewards: on support, without ``rho_max``, G_t = r_t + Σ_{k≥1} γ^k (r_{t+k} − log proj_p π(a_{t+k}|s_{t+k})).

    Args:
        lambda_: share of the longer return, in [0, 1].
        gauge: as for ``csil``.
        stop_target: G carries no gradient.
        target_network: read V_p and Q of later steps from the Polyak average of the student, which carries no gradient.
        rho_max: weigh each step, and each step's share of the trace, by ρ_t = min(rho_max, π(a_t)/behaviour(a_t)), as for ``csil``.
    """
    td = transitions(steps, gauge, gamma)
    after = transitions(steps.bootstrap(target_network), gauge, gamma)
    rho_t = importance_weight(steps, rho_max)
    trace_t = lambda_ * (steps.counted_t.to(td.q_t.dtype) if rho_t is None else rho_t)
    v_tp1, q_tp1, trace_tp1 = (steps.later(x_t) for x_t in (after.v_t, after.q_t, trace_t))
    return_t = lambda_return(td.reward_t, steps.discount_t(gamma), v_tp1, q_tp1, trace_tp1)
    loss_t = 0.5 * (td.q_t - (return_t.detach() if stop_target else return_t)).square()
    return td_output(steps, td, loss_t, rho_t)


OBJECTIVE = Objective(fn=q_lambda, needs=td_needs, anchor="none")
