"""Multiply hidden states with the head a block at a time, with the gradient taken beside the value.

Three matrix products a block (logits, gradient of the hidden states, gradient of the weight) and no logits of two blocks at once. Where the
loss is a sum over blocks, its gradient is known as soon as the block's loss is, so that it is taken in the forward: ``InForward``. Where it is
not, ``Recomputed`` gives the fields of all tokens and computes the logits again in the backward: four products.
The gradient in the forward is the idea of Liger Kernel's fused linear losses (Hsu et al. 2024) and of cut cross-entropy (Wijmans et al. 2024).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdistill.models.head.answers import OVER_VOCABULARY, Answered, Asked, answer, gradient_of_logits, names_of
from tdistill.models.head.readout import After, Readout
from tdistill.models.precision import at_least_float32, no_autocast


class Gradients:
    """Add up the gradients of hidden states [N, D], weight and bias over blocks. A tensor that needs none gets none.

    They are added up in at least float32: in bfloat16 a sum over blocks loses what it adds.
    """

    def __init__(self, readout: Readout, tensors: Sequence[Tensor | None], needed: Sequence[bool]):
        """Start at 0.

        Args:
            readout: as it multiplies, in the type of the product.
            tensors: the hidden states, the weight and the bias.
            needed: which of them need a gradient.
        """
        self.readout = readout
        self._tensors = [x if need else None for x, need in zip(tensors, needed, strict=True)]
        hidden, _, bias = self._tensors
        self._hidden = None if hidden is None else torch.zeros_like(hidden)
        self._bias = None if bias is None else torch.zeros_like(at_least_float32(bias))
        self._weight: Tensor | None = None  # made by the first block
        self._spare: Tensor | None = None

    def add(self, tokens: Tensor | slice, hidden: Tensor, of_logits: Tensor, logits: Tensor | None) -> None:
        """Add the gradients of a block.

        Args:
            tokens: [n] places of the block's tokens in the hidden states.
            hidden: [n, D] their hidden states.
            of_logits: [n, rows] the gradient of the logits. It is overwritten.
            logits: [n, rows], read where the model caps them.
        """
        raw = self.readout.after.pull(logits, of_logits)
        if self._bias is not None:
            self._bias[: self.readout.rows] += raw.sum(0)
        raw = raw.to(hidden.dtype)
        if self._hidden is not None:
            self._hidden[tokens] = raw @ self.readout.weight
        if self._tensors[1] is not None:
            self._add_to_weight(raw, hidden)

    def _add_to_weight(self, raw: Tensor, hidden: Tensor) -> None:
        whole, rows = self._tensors[1], self.readout.rows
        assert whole is not None
        if self._weight is None:
            first = at_least_float32(torch.mm(raw.t(), hidden))
            self._weight = first if rows == len(whole) else torch.nn.functional.pad(first, (0, 0, 0, len(whole) - rows))
        elif self._weight.dtype == raw.dtype:
            self._weight[:rows].addmm_(raw.t(), hidden)
        else:
            if self._spare is None:
                self._spare = torch.empty(rows, hidden.shape[-1], dtype=raw.dtype, device=raw.device)
            self._weight[:rows] += torch.mm(raw.t(), hidden, out=self._spare)

    def all(self) -> list[Tensor | None]:
        """Return the gradients of hidden states, weight and bias, in their types."""
        found = [self._hidden, self._weight, self._bias]
        if self._weight is None and self._tensors[1] is not None:
            found[1] = torch.zeros_like(self._tensors[1])
        return [g if g is None or x is None else g.to(x.dtype) for g, x in zip(found, self._tensors, strict=True)]


class Recomputed(torch.autograd.Function):
    """Return the fields of N tokens that ``asked`` asks for, by name. The backward computes the logits again where it reads them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: "Plan") -> Any:
        """Return the fields in the order of ``names_of(plan.asked)``."""
        readout = plan.readout(weight, bias, hidden.dtype)
        parts = []
        with no_autocast(hidden):
            for one in plan.parts(hidden):
                parts.append(answer(readout.logits(hidden[one]), plan.asked.part(one), keep=False).fields)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.plan = plan
        return tuple(torch.cat([part[name] for part in parts]) for name in names_of(plan.asked))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> Any:
        """Return the gradients of hidden states, weight and bias."""
        hidden, weight, bias = ctx.saved_tensors
        plan: Plan = ctx.plan
        readout = plan.readout(weight, bias, hidden.dtype)
        found = {name: g for name, g in zip(names_of(plan.asked), given, strict=True) if name != "entropy_t"}
        capped = plan.after.cap is not None
        sums = Gradients(readout, (hidden, weight, bias), ctx.needs_input_grad[:3])
        with no_autocast(hidden):
            for one in plan.parts(hidden):
                asked, answered, logits = plan.asked.part(one), Answered({}), None
                if capped or asked.needs & OVER_VOCABULARY:
                    logits = readout.logits(hidden[one])
                    answered = answer(logits, asked, keep=capped)
                of_logits = gradient_of_logits({n: g[one] for n, g in found.items()}, answered, asked, (len(hidden[one]), readout.rows))
                sums.add(one, hidden[one], of_logits, logits)
        return (*sums.all(), None)


@dataclass(frozen=True)
class Plan:
    """Hold what a pass over N tokens does: what is asked of the logits, what the model does to them, and how many tokens come at once."""

    asked: Asked
    after: After
    vocab_size: int | None
    tokens: int

    def readout(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Readout:
        """Return the readout in the type of the product."""
        return Readout(weight, bias, self.after, self.vocab_size).cast(dtype)

    def parts(self, hidden: Tensor) -> Iterator[slice]:
        """Return the places of the tokens of each block."""
        yield from (slice(start, min(start + self.tokens, len(hidden))) for start in range(0, max(len(hidden), 1), self.tokens))


class InForward(torch.autograd.Function):
    """Return the loss of ``Work``. Its gradients are taken in the forward; the backward multiplies them by a number."""

    @staticmethod
    def forward(ctx: Any, work: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *values: Tensor) -> Tensor:
        """Return the loss. ``values`` are further fields with a gradient, [B, T] or [B, T, K], by the names of ``work.values``."""
        readout = Readout(weight, bias, work.after, work.vocab_size).cast(hidden.dtype)
        sums = Gradients(readout, (hidden, weight, bias), ctx.needs_input_grad[1:4])
        of_values = [torch.zeros_like(x) if need else None for x, need in zip(values, ctx.needs_input_grad[4:], strict=True)]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        with no_autocast(hidden):
            for block in work.blocks:
                total += work.gradient(block, hidden, sums, values, of_values)
        ctx.gradients = (*sums.all(), *of_values)
        return total.to(at_least_float32(hidden[:0]).dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> Any:
        """Return the gradients, times that of the loss."""
        given, ctx.gradients = ctx.gradients, None
        if given is None:
            raise RuntimeError("This head keeps its gradient for one backward alone, not for retain_graph=True. Use head: full.")
        return None, *(x if x is None else x.mul_(of_loss) for x in given)
