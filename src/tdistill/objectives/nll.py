"""Compute the negative log-likelihood of the token taken: SFT on human text, sequence-level distillation on teacher text."""

import torch

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Objective, ObjectiveOutput
from tdistill.objectives.parts.expert import expert_flags


def nll(steps: Steps) -> ObjectiveOutput:
    """Raise the likelihood of the token taken, over the whole vocabulary.

        loss_t = −log π(a_t|s_t) = log Z(s_t) − ℓ(s_t, a_t)

    Tokens outside A_p count too, so that it is plain cross-entropy. On teacher text it is SeqKD (Kim & Rush 2016, eq. 5-8). The
    student's own steps are not cloned: they contribute 0.
    """
    assert steps.log_z_t is not None
    assert steps.taken_logit_t is not None
    return ObjectiveOutput(torch.where(expert_flags(steps), steps.log_z_t - steps.taken_logit_t, 0.0))


OBJECTIVE = Objective(fn=nll, needs=lambda: frozenset({"log_z", "taken", "expert"}), scope="step")
