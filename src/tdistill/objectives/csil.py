"""Learn by coherent soft imitation on the top-p tokens: soft Q-learning on the reward that the teacher's policy defines."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, Objective, ObjectiveOutput, Positive
from tdistill.objectives.parts.gauge import FreeGauge
from tdistill.objectives.parts.transition import importance_weight, td_needs, td_output, transitions


def csil(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    gauge: FreeGauge = "learned",
    stop_target: bool = True,
    target_network: bool = False,
    rho_max: Positive | None = None,
) -> ObjectiveOutput:
    """Regress Q to the soft Bellman target of the teacher's log-probability as reward.

        loss_t = ρ_t·½(Q(s_t,a_t) − sg(r_t + γV_p(s_{t+1})))²,  r_t = log proj_p π*(a_t|s_t),  ρ_t = 1 unless ``rho_max`` is given

    For this reward the teacher is soft-optimal with V ≡ 0. It is coherent soft imitation learning (Watson et al. 2023), with the entropy in
    place of their KL to a prior. A student that equals the teacher, with v ≡ 0 under the gauge ``learned``, pays 0 with gradient 0 at every
    γ. γ = 0 regresses log-probabilities: no later step enters. Steps whose token lies outside A_p, and the last step of a response cut off
    by length, contribute 0.

    Args:
        gauge: ``learned`` Q = log proj_p π + v(s), ``none`` Q = the logit. Under the other gauges V_p would be a function of
            the policy alone.
        stop_target: the target carries no gradient (semi-gradient TD). False minimises the squared soft Bellman error itself.
        target_network: read V_p(s_{t+1}) from the Polyak average of the student, which carries no gradient.
        rho_max: weigh each step by ρ_t = min(rho_max, π(a_t)/behaviour(a_t)), without gradient. Give it on text that the student did not
            write. With ``inf`` V_p is then the value of the student's own policy, −KL(π‖π*) + γE_π V_p(s'). Without a weight it is that
            of the writer's: on the teacher's text +KL(π*‖π) + γE_π* V_p(s'), so that a state in which the student fails looks valuable.
            Per-decision importance sampling (Precup et al. 2000), truncated as in Espeholt et al. (2018). ρ_t counts as 1 where nobody
            sampled the token (human text).
    """
    td = transitions(steps, gauge, gamma)
    target_t = td.reward_t + transitions(steps.bootstrap(target_network), gauge, gamma).backup_t
    loss_t = 0.5 * (td.q_t - (target_t.detach() if stop_target else target_t)).square()
    return td_output(steps, td, loss_t, importance_weight(steps, rho_max))


OBJECTIVE = Objective(fn=csil, needs=td_needs, anchor="none")
