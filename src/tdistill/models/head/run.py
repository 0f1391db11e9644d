"""Run a head: from the hidden states of a batch to the fields of ``Steps``, or to a loss of them."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.models.head.answers import Asked, names_of
from tdistill.models.head.blocks import Block, LossOfBlock, block_tokens, blocks_of_responses, blocks_of_steps, longest_response, spread
from tdistill.models.head.contract import Head, name_for
from tdistill.models.head.full import HEAD, WIDE
from tdistill.models.head.pairs import PairLogits
from tdistill.models.head.projection import InForward, Plan, Recomputed
from tdistill.models.head.readout import After, product_type
from tdistill.models.head.sampling import draw, proposal_of
from tdistill.models.head.work import Work
from tdistill.objectives.contract import Scope


@dataclass(frozen=True)
class HeadCall:
    """Say what a pass of the student computes beyond the fields that an objective needs.

    Args:
        loss: the pass returns this loss, with its metrics, instead of the fields.
        scope: the steps that the loss of a step reads: the step, its response, or the batch.
        watched: needs of the diagnostics, which are answered exactly and without a gradient.
        seed: seed of the tokens that the head ``sampled`` draws.
        exact: do not estimate, whatever the head.
    """

    loss: LossOfBlock | None = None
    scope: Scope = "response"
    watched: frozenset[str] = frozenset()
    seed: int = 0
    exact: bool = False


@dataclass(frozen=True)
class Given:
    """Hold what a head reads of a batch."""

    hidden: Float[Tensor, "B T D"]  # the input of the language model's own head
    weight: Float[Tensor, "rows D"]
    bias: Float[Tensor, " rows"] | None
    taken: Int[Tensor, "B T"]
    candidates: Int[Tensor, "B T K"] | None
    legal: Bool[Tensor, "B T K"] | None
    valid: Bool[Tensor, "B T"]
    needs: frozenset[str]
    vocab_size: int | None
    values: dict[str, Tensor] = field(default_factory=dict)  # fields that the value head answers


def fields(head: Head, given: Given, call: HeadCall) -> dict[str, Tensor]:
    """Return the fields of the batch [B, T, …], 0 at steps that do not exist. Needs with a vocabulary axis are for ``loss`` alone."""
    name = _name(head, given, call)
    if name == "chunked":
        return _chunked_fields(head, given, given.needs) | given.values
    if name == "sampled":
        return _sampled_fields(head, given, call.seed) | given.values
    known = _known_logits(head, given, with_taken="taken" in given.needs)
    return {"q_t": known.candidates} | ({} if known.taken is None else {"taken_logit_t": known.taken}) | given.values


def loss(head: Head, given: Given, call: HeadCall) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of the batch, and its metrics [B, T], NaN at steps that do not exist."""
    assert call.loss is not None
    if _name(head, given, call) != "chunked":
        with torch.no_grad():
            exact = _chunked_fields(head, replace(given, candidates=None), call.watched) if call.watched else {}
        return call.loss(Block(), fields(head, given, call), exact)
    needs, blocks = given.needs | call.watched, _blocks(given, call.scope)
    if blocks is None:
        found = _chunked_fields(head, given, needs) | given.values
        return call.loss(Block(), found, found)
    names, values = tuple(given.values), list(given.values.values())
    after, wide = _after(head), _is_wide(given)
    work = Work(call.loss, blocks, given.valid, given.candidates, given.taken, needs, wide, after, given.vocab_size, names)
    hidden = _hidden(given)
    if torch.is_grad_enabled():
        return InForward.apply(work, hidden, given.weight, given.bias, *values), work.metrics
    return work.value(hidden, given.weight, given.bias, values), work.metrics


def at_candidates(given: Given, read: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
    """Return ⟨read, e_a⟩ of every candidate a, with e_a its row of the head, which gets no gradient."""
    states, tokens, legal = _pairs(given)
    return read.new_zeros(legal.shape).masked_scatter(legal, PairLogits.apply(read[given.valid], given.weight.detach(), states, tokens))


@dataclass(frozen=True)
class _Known:
    """Hold the logits of the candidates, 0 at other slots, and of the tokens taken, 0 at steps that do not exist, where they are needed."""

    candidates: Float[Tensor, "B T K"]
    taken: Float[Tensor, "B T"] | None


def _known_logits(head: Head, given: Given, with_taken: bool) -> _Known:
    states, tokens, legal = _pairs(given)
    count = len(states)
    if with_taken:
        taken = given.taken[given.valid]
        states, tokens = torch.cat([states, torch.arange(len(taken), device=taken.device)]), torch.cat([tokens, taken])
    order = states.argsort(stable=True)
    sorted_raw = PairLogits.apply(given.hidden[given.valid].to(given.weight.dtype), given.weight, states[order], tokens[order])
    raw = torch.zeros_like(sorted_raw).index_copy(0, order, sorted_raw)
    logits = _after(head)(raw if given.bias is None else raw + given.bias[tokens])
    of_candidates = logits.new_zeros(legal.shape).masked_scatter(legal, logits[:count])
    return _Known(of_candidates, spread(logits[count:], given.valid) if with_taken else None)


def _pairs(given: Given) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Bool[Tensor, "B T K"]]:
    """Return the pairs of a step that exists and a candidate: the step's place among those, the candidate's id; and the slots they stand in."""
    assert given.candidates is not None
    assert given.legal is not None
    legal = given.legal & given.valid.unsqueeze(-1)
    places = (given.valid.flatten().cumsum(0) - 1).view_as(given.valid)
    return places.unsqueeze(-1).expand_as(legal)[legal], given.candidates[legal], legal


def _sampled_fields(head: Head, given: Given, seed: int) -> dict[str, Tensor]:
    """Return the logits of candidates and tokens taken, and the log-partition with drawn tokens in place of those that are not known."""
    assert given.candidates is not None
    assert given.legal is not None
    states, tokens, _ = _pairs(given)
    taken = given.taken[given.valid]
    every = torch.arange(len(taken), device=taken.device)
    proposal = proposal_of(tokens, given.vocab_size or len(given.weight))
    drawn = draw(proposal, head.samples, seed, (torch.cat([states, every]), torch.cat([tokens, taken])))
    ids = torch.cat([tokens, taken, drawn.ids]).unique()
    weight, bias = given.weight.index_select(0, ids), None if given.bias is None else given.bias.index_select(0, ids)  # once: one gradient

    def place(token_ids: Tensor) -> Tensor:
        return torch.searchsorted(ids, token_ids).clamp(max=len(ids) - 1)  # a slot that is no candidate gets some place

    small = replace(given, weight=weight, bias=bias, taken=place(given.taken), candidates=place(given.candidates), vocab_size=None)
    known, rows = _known_logits(head, small, with_taken=True), place(drawn.ids)
    assert known.taken is not None
    plan = Plan(Asked(frozenset({"log_z"}), None, taken, drawn), _after(head), None, block_tokens(len(rows), taken.device))
    (others,) = Recomputed.apply(_hidden(given), weight[rows], None if bias is None else bias[rows], plan)
    is_candidate = ((given.candidates == given.taken.unsqueeze(-1)) & given.legal).any(-1)
    apart = known.taken.masked_fill(is_candidate, -torch.inf).unsqueeze(-1)
    inside = known.candidates.masked_fill(~given.legal, -torch.inf)
    log_z = torch.cat([inside, apart, spread(others, given.valid).unsqueeze(-1)], -1)[given.valid].logsumexp(-1)
    return {"q_t": known.candidates, "taken_logit_t": known.taken, "log_z_t": spread(log_z, given.valid)}


def _chunked_fields(head: Head, given: Given, needs: frozenset[str]) -> dict[str, Tensor]:
    """Return the fields without a vocabulary axis, from logits that the backward computes again."""
    candidates = None if given.candidates is None else given.candidates[given.valid]
    asked = Asked(needs & HEAD.keys(), candidates, given.taken[given.valid])
    size = given.vocab_size or len(given.weight)
    plan = Plan(asked, _after(head), given.vocab_size, block_tokens(size, given.hidden.device))
    found = Recomputed.apply(_hidden(given), given.weight, given.bias, plan)
    return {name: spread(x, given.valid) for name, x in zip(names_of(asked), found, strict=True)}


def _hidden(given: Given) -> Float[Tensor, "N D"]:
    """Return the hidden states of the steps that exist, in the type of the product."""
    return given.hidden[given.valid].to(product_type(given.hidden, given.weight))


def _name(head: Head, given: Given, call: HeadCall) -> str:
    return name_for(head, given.needs, given.candidates is None, call.exact)


def _after(head: Head) -> After:
    assert head.after is not None, "StudentModel.use_head measures it"
    return head.after


def _is_wide(given: Given) -> bool:
    return bool(given.needs & WIDE) or given.candidates is None


def _blocks(given: Given, scope: Scope) -> list[Block] | None:
    """Return the blocks; None where the loss couples more steps than fit into a block, so that the logits are computed again."""
    counts = None if given.legal is None else given.legal.sum(-1)
    size, device = given.vocab_size or len(given.weight), given.hidden.device
    tokens, wide = block_tokens(size, device), _is_wide(given)
    if scope == "step":
        return list(blocks_of_steps(given.valid, counts, tokens))
    if scope == "batch":
        return list(blocks_of_responses(given.valid, counts, given.valid.numel())) if wide else None
    if not wide and longest_response(given.valid) > block_tokens(size, device, largest=True):
        return None
    return list(blocks_of_responses(given.valid, counts, tokens))
