"""Turn a batch and the student's outputs into ``Steps``."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.collate import IGNORED_LABEL
from tdistill.mdp.candidates import spread_tail
from tdistill.mdp.steps import Steps
from tdistill.models.forward import step_logp
from tdistill.objectives.contract import FIELDS

# Keys of a batch that the student's forward reads.
STUDENT_INPUTS = ("input_ids", "attention_mask", "taken_ids", "candidate_ids")


def student_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a batch that goes through the student (and through DDP's and FSDP's wrappers)."""
    return {k: batch[k] for k in STUDENT_INPUTS if k in batch}


def teacher_online(teacher: PreTrainedModel, batch: dict[str, Tensor], vocab_size: int) -> Float[Tensor, "B T V"]:
    """Return the teacher's log-probs over the vocabulary at every step, without autograd."""
    steps = batch["taken_ids"].shape[1]
    # clone: tensors made in inference mode can't be saved for the backward of the loss
    return step_logp(teacher, batch["input_ids"], batch["attention_mask"], steps, vocab_size).clone()


def build_steps(
    batch: dict[str, Tensor],
    out: dict[str, Tensor],
    vocab_size: int,
    teacher_logp: Float[Tensor, "B T V"] | None = None,
    needs: frozenset[str] = frozenset(),
) -> Steps:
    """Build the ``Steps`` that objectives read.

    Args:
        batch: from ``DistillCollator``, on the student's device.
        out: what ``StudentModel.forward`` returned.
        vocab_size: real tokens, V.
        teacher_logp: the online teacher's, [B, T, V]: fills ``dense``, and the whole contract where the batch has no candidates.
        needs: the objective's; of them ``uniform`` is made here, from the candidates.
    """
    mask = batch["labels"] != IGNORED_LABEL
    common: dict[str, Any] = {
        "mask_t": mask,
        "terminal_t": batch["terminal"],
        "teacher_taken_logp_t": batch["teacher_taken_logp"],
        "behaviour_logp_t": batch["behaviour_logp"],
        "expert_t": batch["expert"].unsqueeze(-1).expand_as(mask),
        "vocab_size": vocab_size,
        **{name: out[name] for name in FIELDS.values() if name in out},
    }
    dense = None if teacher_logp is None else _over_vocabulary(batch, out, teacher_logp, common)
    if "candidate_ids" not in batch:
        assert dense is not None
        return replace(dense, dense=dense, uniform=dense)
    uniform = None
    if "uniform" in needs:
        spread = spread_tail(batch["logp"], batch["candidate_ids"], batch["legal"], vocab_size)
        uniform = _over_vocabulary(batch, out, spread, common)
    return Steps(
        q_t=out["q_t"],
        teacher_logp_t=batch["logp"],
        legal_t=batch["legal"],
        a_t=taken_index(batch),
        dense=dense,
        uniform=uniform,
        **common,
    )


def _over_vocabulary(batch: dict[str, Tensor], out: dict[str, Tensor], logp: Float[Tensor, "B T V"], common: dict[str, Any]) -> Steps:
    """Return the same steps with every token a candidate."""
    if "candidate_ids" in batch:  # then the value head's action values are of the candidates
        common = common | {"action_value_t": None}
    return Steps(
        q_t=out.get("logits_t", out["q_t"]),
        teacher_logp_t=logp,
        legal_t=common["mask_t"].unsqueeze(-1).expand_as(logp),
        a_t=torch.where(common["mask_t"], batch["taken_ids"], -1),
        **common,
    )


def taken_index(batch: dict[str, Tensor]) -> Tensor:
    """Return the index in K of the token taken [B, T]. It is −1 if the token is no candidate."""
    hit = (batch["candidate_ids"] == batch["taken_ids"].unsqueeze(-1)) & batch["legal"]
    return torch.where(hit.any(-1), hit.long().argmax(-1), -1)
