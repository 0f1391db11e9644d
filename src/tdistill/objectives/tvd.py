"""Compute the total variation distance: the largest difference between the two probabilities of any set of tokens."""

import torch

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.support import Support, check_temperature, distributions, support_needs


def tvd(steps: Steps, *, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """Measure half of the absolute differences in probability (Wen et al. 2023, f-distill).

        loss_t = ½ Σ_a |p(a) − q(a)|,  p the teacher, q the student

    It is symmetric, and in [0, 1]. Its gradient does not shrink as q → p. |x| has a kink at 0, where the gradient is taken as 0.

    Args:
        support: as for ``forward_kl``; ``tail`` is a lower bound of ``dense``.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    p, q, legal = distributions(steps, support, loss_temperature)
    return ObjectiveOutput(0.5 * torch.where(legal, (p.exp() - q.exp()).abs(), 0.0).sum(-1))


OBJECTIVE = Objective(fn=tvd, needs=support_needs, check=check_temperature, scope="step")
