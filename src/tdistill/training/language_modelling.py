"""Compute the language-modelling term: the student continues to read a plain-text corpus while it is distilled."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tdistill.models.forward import step_logp
from tdistill.objectives.parts.divergence import kl
from tdistill.recipe.schema import LmConfig


def window_losses(model: nn.Module, windows: Tensor, term: LmConfig, teacher: PreTrainedModel | None, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return the next token's cross-entropy, and KL(teacher ‖ student) over the vocabulary (0 without ``kd_ratio``), at every step of windows.

    Args:
        model: a ``StudentModel``, wrapped or not.
        windows: [B, W] token ids; each gives W − 1 steps.
        term: settings of the term.
        teacher: read only with ``kd_ratio`` > 0.
        vocab_size: V.

    Returns:
        Two tensors [B, W − 1], in nats.
    """
    read, targets = windows[:, :-1], windows[:, 1:]
    given: dict[str, Any] = {"input_ids": read, "attention_mask": torch.ones_like(read), "taken_ids": targets, "vocab_size": vocab_size}
    out = model(**given, needs=frozenset({"log_z", "taken"}))  # without candidates, q_t are all V logits
    ce = out["log_z_t"] - out["taken_logit_t"]
    if not term.reads_teacher:
        return ce, torch.zeros_like(ce)
    assert teacher is not None
    # clone: tensors made in inference mode can't be saved for the backward of the loss
    p = step_logp(teacher, read, torch.ones_like(read), targets.shape[1], vocab_size).clone()
    return ce, kl(p, out["q_t"] - out["log_z_t"].unsqueeze(-1), torch.ones_like(p, dtype=torch.bool))
