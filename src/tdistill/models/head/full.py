"""Compute the student's fields of ``Steps`` from the logits of all tokens, and no more of them than are needed: the readable truth."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.objectives.contract import FIELDS


@torch.no_grad()
def entropy(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """Return the entropy of the softmax, in nats. A logit of −inf counts as a probability of 0."""
    return torch.special.entr((logits - logits.logsumexp(-1, keepdim=True)).exp()).sum(-1)


# Need → what answers it, of the logits and the tokens taken. To add one: a field in ``mdp/steps.py``, a line here, and one in ``answers``.
HEAD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_z": lambda logits, _: logits.logsumexp(-1),
    "max": lambda logits, _: logits.amax(-1),
    "taken": lambda logits, taken: logits.gather(-1, taken.unsqueeze(-1)).squeeze(-1),
    "entropy": lambda logits, _: entropy(logits.detach()),
}
WIDE = frozenset({"dense", "uniform"})  # needs that read the logits of all tokens, with a vocabulary axis


def at_candidates(every: Float[Tensor, "B T V"], candidates: Int[Tensor, "B T K"] | None) -> Float[Tensor, "B T K"]:
    """Return the entries of the candidates out of one for each token. None: every token is a candidate."""
    return every if candidates is None else every.gather(-1, candidates)


def fields(
    logits: Float[Tensor, "B T V"], candidates: Int[Tensor, "B T K"] | None, taken: Int[Tensor, "B T"], needs: frozenset[str]
) -> dict[str, Tensor]:
    """Return the logits at the candidates, q_t, and the field of each need that the logits answer; ``logits_t`` for the needs in ``WIDE``."""
    out = {"q_t": at_candidates(logits, candidates)}
    out |= {FIELDS[need]: answer(logits, taken) for need, answer in HEAD.items() if need in needs}
    return out | ({"logits_t": logits} if needs & WIDE else {})
