"""Turn a batch and the student's outputs into ``Steps``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.collate import IGNORED_LABEL
from tdistill.mdp.candidates import spread_tail
from tdistill.mdp.steps import Steps
from tdistill.models.forward import check_finite, step_logp, step_outputs
from tdistill.models.head.blocks import Block, LossOfBlock
from tdistill.models.head.full import WIDE
from tdistill.models.head.readout import After, Readout, find_after, first_column, product_type, replaced_head
from tdistill.objectives import BoundObjective
from tdistill.objectives.contract import FIELDS
from tdistill.runtime.errors import ModelError
from tdistill.training.metrics import diagnostics, support_metrics

# Keys of a batch that the student's forward reads.
STUDENT_INPUTS = ("input_ids", "attention_mask", "taken_ids", "candidate_ids", "legal")
# Keys of a batch that are no field of its steps.
TEXTS = ("input_ids", "attention_mask", "window_ids")


def student_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a batch that goes through the student (and through DDP's and FSDP's wrappers)."""
    return {k: batch[k] for k in STUDENT_INPUTS if k in batch} | {"valid": batch["labels"] != IGNORED_LABEL}


class OnlineTeacher:
    """Read every logit of a teacher, without autograd, a block at a time: only its hidden states are kept for a whole batch.

    Args:
        model: the teacher. If its head can't be read, the logits of the whole batch are kept.
        vocab_size: V.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int):
        self.model, self.vocab_size = model, vocab_size
        try:
            self._after: After | None = find_after(model)
        except ModelError:
            self._after = None

    @torch.no_grad()
    def read(self, input_ids: Tensor, attention_mask: Tensor, steps: int) -> Callable[[Block], Float[Tensor, "b t V"]]:
        """Read texts. Returns a function from a block to the log-probs of its steps, which are the last ``steps`` columns.

        Raises:
            ModelError: logits at a real token are not finite.
        """
        if self._after is None:
            logp = step_logp(self.model, input_ids, attention_mask, steps, self.vocab_size).clone()
            return lambda block: block.tokens(logp)
        with replaced_head(self.model, first_column) as seen:
            step_outputs(self.model, input_ids, attention_mask, steps)
        hidden, head, real = seen[0][:, -steps:], self.model.get_output_embeddings(), attention_mask[:, -steps:].bool()
        readout = Readout(head.weight, head.bias, self._after, self.vocab_size).cast(product_type(hidden, head.weight))

        def logp_of(block: Block) -> Tensor:
            with torch.no_grad():
                logits = readout.logits(block.tokens(hidden).to(readout.weight.dtype))
                check_finite(logits, (), block.take(real))
                return logits.log_softmax(-1)

        return logp_of


@dataclass(frozen=True)
class BatchSteps:
    """Build the ``Steps`` of each block of a batch.

    Args:
        batch: from ``DistillCollator``, on the student's device.
        vocab_size: V.
        needs: the objective's.
        teacher: what ``OnlineTeacher.read`` returned, where the teacher is online.
        target: the fields of the batch under the target network.
    """

    batch: dict[str, Tensor]
    vocab_size: int
    needs: frozenset[str]
    teacher: Callable[[Block], Tensor] | None = None
    target: dict[str, Tensor] | None = None

    def __call__(self, block: Block, fields: dict[str, Tensor]) -> Steps:
        """Return the steps of a block, of the student's fields there."""
        part = {name: block.take(x) for name, x in self.batch.items() if name not in TEXTS}
        logp = None if self.teacher is None else self.teacher(block)
        steps = build_steps(part, fields, self.vocab_size, logp, self.needs)
        if self.target is None:
            return steps
        target = {name: block.take(x) for name, x in self.target.items()}
        return replace(steps, target=build_steps(part, target, self.vocab_size, logp, self.needs - WIDE))


def objective_loss(objective: BoundObjective, steps_of: BatchSteps, count: Tensor | int, watched: bool = False) -> LossOfBlock:
    """Return Σ loss_t·mask_t ÷ ``count`` of a block, as a head calls it, with the metrics, and with the diagnostics if they are watched."""

    def loss(block: Block, fields: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        steps = steps_of(block, fields)
        output = objective(steps)
        seen = output.metrics | support_metrics(steps) | (diagnostics(steps, exact) if watched else {})
        return torch.where(steps.mask_t, output.loss_t, 0.0).sum() / count, seen

    return loss


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
