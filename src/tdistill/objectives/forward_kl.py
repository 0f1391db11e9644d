"""Compute forward KL to the teacher: classic knowledge distillation, on the candidates or on the whole vocabulary."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.divergence import kl
from tdistill.objectives.parts.support import Support, check_temperature, distributions, support_needs


def forward_kl(steps: Steps, *, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """Measure KL(teacher ‖ student) at each step (Hinton et al. 2015).

        loss_t = KL(p‖q) = Σ_a p(a)·(log p(a) − log q(a)),  p the teacher, q the student

    Args:
        support: ``tail`` sums over A_p and one bucket for the rest (a lower bound of the dense KL, exact when K = V);
            ``proj`` over the projections of both onto A_p; ``dense`` over the vocabulary (the teacher must be online);
            ``uniform`` over the vocabulary too, with the teacher's mass outside A_p spread evenly over the tokens there.
        loss_temperature: divides both logits; no T² factor is applied. ``tail`` allows only 1.
    """
    p, q, legal = distributions(steps, support, loss_temperature)
    return ObjectiveOutput(kl(p, q, legal))


OBJECTIVE = Objective(fn=forward_kl, needs=support_needs, check=check_temperature, scope="step")
