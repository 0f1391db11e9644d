"""Compute skew KL: forward KL to a mixture of student and teacher, which bounds the cost of a missing token."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.divergence import SKEW, kl
from tdistill.objectives.parts.support import Support, check_skew, distributions, support_needs


def skew_kl(steps: Steps, *, skew: Finite = SKEW, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """Measure KL(teacher ‖ mixture of teacher and student) at each step (Ko et al. 2024, DistiLLM).

        loss_t = KL(p‖λp + (1−λ)q),  p the teacher, q the student, λ = ``skew``

    λ = 0 is ``forward_kl``. For λ > 0 the loss is at most −log λ, even if the student gives a token no probability.

    Args:
        skew: λ, the teacher's share of the mixture, in [0, 1); the default is the paper's.
        support: as for ``forward_kl``; ``tail`` is a lower bound of ``dense``.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    return ObjectiveOutput(kl(*distributions(steps, support, loss_temperature), skew))


OBJECTIVE = Objective(fn=skew_kl, needs=support_needs, check=check_skew, scope="step")
