"""Compute the student's fields of ``Steps`` from the output of its language model, and no more of them than are needed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.models.value_head import ValueHead
from tdistill.objectives.contract import FIELDS


@dataclass(frozen=True)
class HeadInput:
    """Hold what a field is computed from."""

    lm: PreTrainedModel
    value_head: ValueHead | None
    logits: Float[Tensor, "B T V"]  # in at least float32, over real tokens
    hidden: Float[Tensor, "B T D"] | None  # the last hidden states, if a value is needed
    taken_ids: Int[Tensor, "B T"]
    candidate_ids: Int[Tensor, "B T K"] | None  # None: every token is a candidate

    def at_candidates(self, every: Float[Tensor, "B T rows"]) -> Float[Tensor, "B T K"]:
        """Return the entries of the candidates out of one for each token."""
        every = every[..., : self.logits.shape[-1]]
        return every if self.candidate_ids is None else every.gather(-1, self.candidate_ids)


@torch.no_grad()
def entropy(logits: Float[Tensor, "*B V"]) -> Float[Tensor, "*B"]:
    """Return the entropy of the softmax, in nats. A logit of −inf counts as a probability of 0."""
    return torch.special.entr((logits - logits.logsumexp(-1, keepdim=True)).exp()).sum(-1)


def _value(given: HeadInput) -> Tensor:
    assert given.value_head is not None
    assert given.hidden is not None
    return given.value_head(given.hidden)


def _action_value(given: HeadInput) -> Tensor:
    assert given.value_head is not None
    assert given.hidden is not None
    return given.at_candidates(given.value_head.of_actions(given.hidden, given.lm.get_output_embeddings().weight))


# Need → what answers it. To add one: a field in ``mdp/steps.py``, and a line here.
HEAD: dict[str, Callable[[HeadInput], Tensor]] = {
    "log_z": lambda given: given.logits.logsumexp(-1),
    "max": lambda given: given.logits.amax(-1),
    "taken": lambda given: given.logits.gather(-1, given.taken_ids.unsqueeze(-1)).squeeze(-1),
    "entropy": lambda given: entropy(given.logits.detach()),
    "value": _value,
    "action_value": _action_value,
}
VALUES = frozenset({"value", "action_value"})  # needs that the value head answers


def fields(given: HeadInput, needs: frozenset[str]) -> dict[str, Tensor]:
    """Return the logits at the candidates, q_t, and the field of each need that the head answers.

    ``dense`` and ``uniform`` need the logits of all tokens too: ``logits_t``.
    """
    out = {"q_t": given.at_candidates(given.logits)}
    out |= {FIELDS[need]: answer(given) for need, answer in HEAD.items() if need in needs}
    return out | ({"logits_t": given.logits} if needs & {"dense", "uniform"} else {})
