"""Compute the logits of candidates alone: one dot product for each pair of a state and a candidate of it, and nothing else of the vocabulary.

    q_i = ⟨h(s_i), W(a_i)⟩      ∂h(s) = Σ_{i: s_i = s} g_i·W(a_i)      ∂W(a) = Σ_{i: a_i = a} g_i·h(s_i)

A matrix product over the union of a batch's candidates would multiply every state with the candidates of all others: at 64 to 2,048 tokens
that is 19 to 251 times as many products as there are pairs (docs/head.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdistill.models.precision import at_least_float32, no_autocast

GATHERED_BYTES = 2**20  # rows of the head that are gathered at once: they should stay in a core's cache


class PairLogits(torch.autograd.Function):
    """Return ⟨h(s_i), W(a_i)⟩ of P pairs, in at least float32, from hidden states [N, D] and the weight of a head [rows, D]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, states: Int[Tensor, " P"], tokens: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
        """Return [P]. ``states`` ascend."""
        ctx.save_for_backward(hidden, weight, states, tokens)
        size = max(GATHERED_BYTES // (weight.shape[-1] * weight.element_size()), 1)
        parts = []
        for some, which in zip(states.split(size), tokens.split(size), strict=True):
            parts.append((at_least_float32(weight.index_select(0, which)) * at_least_float32(hidden.index_select(0, some))).sum(-1))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> Any:
        """Return the gradients of hidden states and weight."""
        hidden, weight, states, tokens = ctx.saved_tensors
        of_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        if len(states) == 0:
            return of_hidden, of_weight, None, None
        with no_autocast(hidden):
            if of_hidden is not None:
                of_hidden = _sums(states, len(hidden), tokens, weight, given).to(hidden.dtype)
            if of_weight is not None:
                order = tokens.argsort(stable=True)
                used, where = tokens[order].unique_consecutive(return_inverse=True)
                rows = _sums(where, len(used), states[order], hidden.to(weight.dtype), given[order])
                of_weight.index_copy_(0, used, rows.to(weight.dtype))
        return of_hidden, of_weight, None, None


def _sums(
    groups: Int[Tensor, " P"], count: int, places: Int[Tensor, " P"], rows: Float[Tensor, "R D"], weights: Tensor
) -> Float[Tensor, "G D"]:
    """Return Σ_{i: groups_i = g} weights_i·rows[places_i] for each g < ``count``. ``groups`` ascend."""
    offsets = torch.bincount(groups, minlength=count).cumsum(0)
    offsets = torch.cat([offsets.new_zeros(1), offsets[:-1]])
    return F.embedding_bag(places, rows, offsets, mode="sum", per_sample_weights=weights.to(rows.dtype))
