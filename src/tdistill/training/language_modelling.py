"""Compute the language-modelling term: the student continues to read a plain-text corpus while it is distilled."""

from typing import Any

import torch
from torch import Tensor, nn

from tdistill.models.head.blocks import Block
from tdistill.models.head.run import HeadCall
from tdistill.objectives.parts.divergence import kl
from tdistill.recipe.schema import LmConfig
from tdistill.training.batch import OnlineTeacher


def window_loss(
    model: nn.Module, windows: Tensor, term: LmConfig, teacher: OnlineTeacher | None, vocab_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return Σ (1 − kd_ratio)·CE + kd_ratio·KL(teacher ‖ student) over all steps of windows, and both parts at every step.

    Args:
        model: a ``StudentModel``, wrapped or not.
        windows: [B, W] token ids; each gives W − 1 steps.
        term: settings of the term.
        teacher: read only with ``kd_ratio`` > 0.
        vocab_size: V.

    Returns:
        The sum, and ``cross_entropy`` and, if the teacher is read, ``kd``, both [B, W − 1] in nats.
    """
    read, targets = windows[:, :-1], windows[:, 1:]
    mask = torch.ones_like(read)
    logp = teacher.read(read, mask, targets.shape[1]) if term.reads_teacher and teacher is not None else None

    def loss(block: Block, fields: dict[str, Tensor], _: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        ce = fields["log_z_t"] - fields["taken_logit_t"]
        if logp is None:
            return ce.sum(), {"cross_entropy": ce}
        p, q = logp(block), fields["q_t"] - fields["log_z_t"].unsqueeze(-1)
        kd = kl(p, q, torch.ones_like(p, dtype=torch.bool))
        return ((1.0 - term.kd_ratio) * ce + term.kd_ratio * kd).sum(), {"cross_entropy": ce, "kd": kd}

    given: dict[str, Any] = {"input_ids": read, "attention_mask": mask, "taken_ids": targets, "vocab_size": vocab_size}
    if logp is None:  # else every token is a candidate, and q_t are all V logits
        given["candidate_ids"] = targets.unsqueeze(-1)
    call = HeadCall(loss, scope="step", exact=True)
    out = model(**given, needs=frozenset({"log_z", "taken"}), call=call)
    return out["loss"], out["metrics"]
