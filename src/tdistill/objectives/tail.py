"""Compare the mass that teacher and student put on A_p: the anchor of losses that see the candidates only."""

import torch

from tdistill.mdp.bellman import log_tail, soft_value
from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Objective, ObjectiveOutput
from tdistill.objectives.parts.divergence import kl


def tail(steps: Steps) -> ObjectiveOutput:
    """Compare the probability of A_p(s_t) as a whole: m* of the teacher, m of the student.

        loss_t = KL(Bernoulli(m*) ‖ Bernoulli(m)) = m*·log(m*/m) + (1−m*)·log((1−m*)/(1−m))

    ``forward_kl`` with ``support="tail"`` is this plus m* times the forward KL between the projections onto A_p. Each state of the
    response counts, whether the token taken is a candidate or not.
    """
    assert steps.log_z_t is not None
    exists = steps.exists_t
    log_m_teacher = soft_value(steps.teacher_logp_t, steps.legal_t)
    log_m = torch.where(exists, soft_value(steps.q_t, steps.legal_t) - steps.log_z_t, 0.0)
    p, q = (torch.stack([m, log_tail(m)], -1) for m in (log_m_teacher, log_m))
    return ObjectiveOutput(kl(p, q, legal=exists.unsqueeze(-1).expand(*exists.shape, 2)))


OBJECTIVE = Objective(fn=tail, needs=lambda: frozenset({"log_z"}), scope="step")
