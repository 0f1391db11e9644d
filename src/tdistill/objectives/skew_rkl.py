"""Compute skew reverse KL: reverse KL to a mixture of teacher and student, which bounds the cost of an unlikely token."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.divergence import SKEW, kl
from tdistill.objectives.parts.support import Support, check_skew, distributions, support_needs


def skew_rkl(steps: Steps, *, skew: Finite = SKEW, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """Measure KL(student ‖ mixture of teacher and student) at each step (Ko et al. 2024, DistiLLM).

        loss_t = KL(q‖(1−λ)p + λq),  p the teacher, q the student, λ = ``skew``

    λ = 0 is ``reverse_kl``. For λ > 0 the loss is at most −log λ, even if the teacher gives a token no probability.

    Args:
        skew: λ, the student's share of the mixture, in [0, 1); the default is the paper's.
        support: as for ``reverse_kl``; ``tail`` is a lower bound of ``dense``.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    p, q, legal = distributions(steps, support, loss_temperature)
    return ObjectiveOutput(kl(q, p, legal, skew))


OBJECTIVE = Objective(fn=skew_rkl, needs=support_needs, check=check_skew, scope="step")
