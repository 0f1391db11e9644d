"""Compute a loss over a batch a block at a time, with its gradient (see ``projection``), and put the metrics of the blocks together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.models.head import full
from tdistill.models.head.answers import Answered, Asked, answer, gradient_of_logits
from tdistill.models.head.blocks import Block, LossOfBlock, spread
from tdistill.models.head.projection import Gradients
from tdistill.models.head.readout import After, Readout


@dataclass
class Work:
    """Hold what the blocks of a batch share.

    Args:
        loss: called with each block.
        blocks: the blocks, which have every valid step once.
        valid: steps that exist.
        candidates: token ids of the candidates; None: every token is one.
        taken: token ids of the responses.
        needs: needs of the loss and of what is watched.
        wide: some need has a vocabulary axis, so that the loss is differentiated down to the logits.
        after: what the model does to the output of its head.
        vocab_size: rows of the head that are tokens.
        values: names of the further fields with a gradient.
    """

    loss: LossOfBlock
    blocks: Sequence[Block]
    valid: Bool[Tensor, "B T"]
    candidates: Int[Tensor, "B T K"] | None
    taken: Int[Tensor, "B T"]
    needs: frozenset[str]
    wide: bool
    after: After
    vocab_size: int | None
    values: tuple[str, ...] = ()
    metrics: dict[str, Tensor] = field(default_factory=dict)  # filled by the blocks
    places: Int[Tensor, "B T"] = field(init=False)

    def __post_init__(self) -> None:
        self.places = (self.valid.flatten().cumsum(0) - 1).view_as(self.valid)

    def value(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, values: Sequence[Tensor]) -> Tensor:
        """Return the loss without a gradient."""
        readout = Readout(weight, bias, self.after, self.vocab_size).cast(hidden.dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for block in self.blocks:
            one = _Part(self, block, hidden, readout, [block.take(x) for x in values])
            total += self._loss(one)
        return total.float() if hidden.dtype != torch.float64 else total

    def gradient(self, block: Block, hidden: Tensor, sums: Gradients, values: Sequence[Tensor], of_values: Sequence[Tensor | None]) -> Tensor:
        """Return a block's loss, and add its gradients to ``sums`` and ``of_values``."""
        with torch.enable_grad():
            one = _Part(self, block, hidden, sums.readout, [block.take(x).detach().requires_grad_() for x in values])
            loss = self._loss(one)
            if not loss.requires_grad:
                return loss
            leaves = one.leaves
            found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
        for name, whole in zip(self.values, of_values, strict=True):
            if (g := found.pop(name)) is not None and whole is not None:
                block.put(g, whole)
        one.add_to(sums, {name: g for name, g in found.items() if g is not None})
        return loss.detach()

    def _loss(self, one: "_Part") -> Tensor:
        fields = one.fields
        loss, metrics = self.loss(one.block, fields, fields)
        for name, x in metrics.items():
            whole = self.metrics.setdefault(name, torch.full(self.valid.shape, torch.nan, dtype=x.dtype, device=x.device))
            one.block.put(x.detach(), whole)
        return loss


class _Part:
    """Compute the fields of one block, and take gradients of them back to its hidden states."""

    def __init__(self, work: Work, block: Block, hidden: Float[Tensor, "N D"], readout: Readout, values: Sequence[Tensor]):
        self.work, self.block = work, block
        self.inside = block.take(work.valid)
        self.tokens = block.take(work.places)[self.inside]
        self.hidden = hidden[self.tokens]
        with torch.no_grad():
            self.logits = readout.logits(self.hidden)
        self._rows = readout.rows
        self.leaves: dict[str, Tensor] = dict(zip(work.values, values, strict=True))
        self.fields = dict(self.leaves) | (self._wide() if work.wide else self._narrow())

    def _narrow(self) -> dict[str, Tensor]:
        """Return the fields without a vocabulary axis. They are the leaves of the loss."""
        work, block, inside = self.work, self.block, self.inside
        candidates = None if work.candidates is None else block.take(work.candidates)[inside]
        self.asked = Asked(work.needs, candidates, block.take(work.taken)[inside])
        with torch.no_grad():
            self.answered: Answered = answer(self.logits, self.asked, keep=work.after.cap is not None)
            fields = {name: spread(x, inside) for name, x in self.answered.fields.items()}
        self.leaves |= {name: x.requires_grad_() for name, x in fields.items() if name != "entropy_t" and torch.is_grad_enabled()}
        return fields

    def _wide(self) -> dict[str, Tensor]:
        """Return the fields with a vocabulary axis too. The logits are the leaf of the loss."""
        self.logits = logits = spread(self.logits, self.inside)
        if torch.is_grad_enabled():
            self.leaves["logits_t"] = logits.requires_grad_()
        candidates = None if self.work.candidates is None else self.block.take(self.work.candidates)
        return full.fields(logits, candidates, self.block.take(self.work.taken), self.work.needs)

    def add_to(self, sums: Gradients, found: dict[str, Tensor]) -> None:
        """Add the gradients of hidden states, weight and bias, of those of the leaves."""
        if not found:
            return
        with torch.no_grad():
            flat = {name: g[self.inside] for name, g in found.items()}
            if self.work.wide:
                sums.add(self.tokens, self.hidden, flat["logits_t"], self.logits[self.inside] if self.work.after.cap is not None else None)
                return
            of_logits = gradient_of_logits(flat, self.answered, self.asked, (len(self.tokens), self._rows))
            sums.add(self.tokens, self.hidden, of_logits, self.logits)
