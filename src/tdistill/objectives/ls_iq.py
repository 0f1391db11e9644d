"""Learn by least-squares inverse Q-learning (Al-Hafez et al. 2023): bounded rewards ±1/c, bounded targets, absorbing ends."""

from typing import Annotated

from pydantic import Field

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.gauge import FreeGauge
from tdistill.objectives.parts.q_regression import Other, Regression, RegressionTerminal, q_regression, q_regression_needs

Discount = Annotated[float, Field(ge=0.0, lt=1.0)]  # at γ = 1 the targets have no bound: it is 1/(c(1−γ))


def ls_iq(
    steps: Steps,
    *,
    gamma: Discount = 0.99,
    c: FinitePositive = 0.5,
    other: Other = "untaken",
    gauge: FreeGauge = "none",
    terminal: RegressionTerminal = "absorbing",
    stop_target: bool = True,
    target_network: bool = False,
) -> ObjectiveOutput:
    """Regress Q to reward 1/c at the expert's steps and −1/c at others, each plus the discounted soft value of what follows.

        loss_t = (Q(s_t,a_t) − (1/c + γV'))² at the expert's steps + (Q − (−1/c + γV'))² at others,  V' = clip V_p(s_{t+1})

    χ²-regularised inverse Q-learning with the regulariser on the mixture of expert and others is this squared Bellman error. Its
    rewards can't leave ±1/c, so V' is clipped to ±1/(c(1−γ)), the values that these rewards allow. γ = 0 regresses Q to ±1/c. Steps
    whose token lies outside A_p, and the last step of a response cut off by length, contribute 0.

    Args:
        c: the regulariser's strength; rewards are ±1/c. The default, and that of ``gamma``, are those of the paper's experiments.
        other: as for ``sqil``: ``untaken`` candidates weighted by the student's policy, or the student's own steps (``rollouts``).
        gauge: ``none`` Q = the logit, ``learned`` Q = log proj_p π + v(s).
        terminal: V of the end: ``absorbing`` 1/(c(1−γ)) for the expert and −1/(c(1−γ)) for others, or ``zero``.
        stop_target: no gradient through V'. False passes it where the clip does nothing.
        target_network: read V_p(s_{t+1}) from the Polyak average of the student, which carries no gradient.
    """
    settings = Regression(
        rewards=(1.0 / c, -1.0 / c),
        gamma=gamma,
        terminal=terminal,
        other=other,
        gauge=gauge,
        stop_target=stop_target,
        target_network=target_network,
        bound=1.0 / (c * (1.0 - gamma)),
    )
    return q_regression(steps, settings)


OBJECTIVE = Objective(fn=ls_iq, needs=q_regression_needs, anchor="none")
