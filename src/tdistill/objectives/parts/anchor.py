"""Compute the anchors: losses that hold the student's mass outside A_p, which a loss on A_p alone never touches."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tdistill.mdp.bellman import log_tail, soft_value
from tdistill.mdp.steps import Steps
from tdistill.objectives.parts.counted import expert_flags
from tdistill.objectives.parts.support import kl

Anchor = Literal["none", "tail", "nll"]
ANCHOR_NEEDS: dict[Anchor, frozenset[str]] = {"none": frozenset(), "tail": frozenset({"log_z"}), "nll": frozenset({"log_z", "taken", "expert"})}


def anchor_loss(steps: Steps, anchor: Anchor) -> Float[Tensor, "B T"]:
    """Return the anchor: ``none`` 0 · ``tail`` KL(Bernoulli(m*) ‖ Bernoulli(m)) of the masses on A_p · ``nll`` −log π(a_t) over the vocabulary.

    At every step whose state exists, whether or not its token is a candidate; ``nll`` at the expert's alone.
    """
    exists = steps.exists_t
    if anchor == "none":
        return torch.zeros_like(steps.q_t[..., 0])
    assert steps.log_z_t is not None
    if anchor == "nll":
        assert steps.taken_logit_t is not None
        return torch.where(expert_flags(steps), steps.log_z_t - steps.taken_logit_t, 0.0)
    log_m_teacher = soft_value(steps.teacher_logp_t, steps.legal_t)
    log_m = torch.where(exists, soft_value(steps.q_t, steps.legal_t) - steps.log_z_t, 0.0)
    p, q = (torch.stack([m, log_tail(m)], -1) for m in (log_m_teacher, log_m))
    return kl(p, q, legal=exists.unsqueeze(-1).expand(*exists.shape, 2))
