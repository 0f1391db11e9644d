"""Learn by soft Q imitation (Reddy, Dragan & Levine 2020): soft Q-learning with reward 1 for the expert's steps and 0 for others."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Gamma, NonNegative, Objective, ObjectiveOutput
from tdistill.objectives.parts.gauge import FreeGauge
from tdistill.objectives.parts.q_regression import Other, Regression, RegressionTerminal, check_discount, q_regression, q_regression_needs


def sqil(
    steps: Steps,
    *,
    gamma: Gamma = 0.99,
    other: Other = "untaken",
    other_weight: NonNegative = 1.0,
    gauge: FreeGauge = "none",
    terminal: RegressionTerminal = "absorbing",
    stop_target: bool = False,
    target_network: bool = False,
) -> ObjectiveOutput:
    """Regress Q to reward 1 at the expert's steps and 0 at others, each plus the discounted soft value of what follows (Algorithm 1).

        loss_t = (Q(s_t,a_t) − (1 + γV_p(s_{t+1})))² at the expert's steps + λ·(Q − γV_p(s_{t+1}))² at others

    So Q counts, discounted, the steps on which the student stays with the expert. γ = 0 regresses Q to 1 and 0. Steps whose token
    lies outside A_p, and the last step of a response cut off by length, contribute 0.

    Args:
        other: what the other steps are, see ``q_regression``: ``untaken`` the candidates that the expert did not take, weighted by
            the student's policy, so that the teacher's text is enough; ``rollouts`` the student's own steps in the batch.
        other_weight: λ, the weight of the other steps. The default is the paper's.
        gauge: ``none`` Q = the logit, ``learned`` Q = log proj_p π + v(s).
        terminal: V of the end: ``absorbing`` 1/(1−γ) for the expert and 0 for others (γ < 1), or ``zero``.
        stop_target: no gradient through V_p(s_{t+1}). The paper's squared soft Bellman error has it.
        target_network: read V_p(s_{t+1}) from the Polyak average of the student, which carries no gradient.
    """
    settings = Regression(
        rewards=(1.0, 0.0),
        gamma=gamma,
        terminal=terminal,
        other=other,
        gauge=gauge,
        stop_target=stop_target,
        target_network=target_network,
        other_weight=other_weight,
    )
    return q_regression(steps, settings)


OBJECTIVE = Objective(fn=sqil, needs=q_regression_needs, check=check_discount, anchor="none")
