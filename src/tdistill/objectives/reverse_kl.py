"""Compute reverse KL to the teacher: mode-seeking distillation on fixed data (the offline baseline of MiniLLM)."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.divergence import kl
from tdistill.objectives.parts.support import Support, check_temperature, distributions, support_needs


def reverse_kl(steps: Steps, *, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """Measure KL(student ‖ teacher) at each step (Gu et al. 2024, offline).

        loss_t = KL(q‖p) = Σ_a q(a)·(log q(a) − log p(a)),  p the teacher, q the student

    Args:
        support: as for ``forward_kl``. ``proj`` never sees the student's mass outside A_p, so that it grows there: pair it with an anchor.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    p, q, legal = distributions(steps, support, loss_temperature)
    return ObjectiveOutput(kl(q, p, legal))


OBJECTIVE = Objective(fn=reverse_kl, needs=support_needs, check=check_temperature, scope="step")
