"""Turn teacher logits into the top-p candidate set A_p(s), the reduced action space.

A_p(s) is the fewest tokens, by descending π*, whose mass reaches p: a token is kept while the mass *before* it is < p,
so at least one token always is. Log-probs stay those of the full vocabulary: renormalising here would bias every KL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.mdp.bellman import log_tail, soft_value
from tdistill.recipe.schema import CandidateRule
from tdistill.runtime.errors import ConfigError

# The nucleus is looked for among this many tokens first, then among ×8 of them, and only then by a full sort:
# sorting [tokens, 49152] costs ten times a topk, and most nuclei are narrow.
FIRST_TOPK = 128
TOPK_GROWTH = 8


@dataclass(frozen=True)
class Ragged:
    """Hold A_p of T states without padding: the candidates of all states in sequence, as a roll-out cache stores them.

    The arrays are numpy's, on the CPU, since they come from Arrow tables and go into them.
    """

    ids: np.ndarray  # [N] integers
    logp: np.ndarray  # [N] true log-probs, over the whole vocabulary, descending in every state
    counts: np.ndarray  # [T] |A_p| of every state; N is their sum
    kept_mass: np.ndarray  # [T] Σ exp(logp) of every state, before logp was rounded

    @staticmethod
    def join(parts: "Sequence[Ragged]") -> "Ragged":
        """Return the states of all parts in sequence."""
        names = [field.name for field in fields(Ragged)]
        return Ragged(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def split(self) -> "list[Ragged]":
        """Return every state alone."""
        ends = np.cumsum(self.counts).tolist()
        states = [(slice(t, t + 1), slice(start, end)) for t, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]
        return [Ragged(self.ids[one], self.logp[one], self.counts[t], self.kept_mass[t]) for t, one in states]

    @property
    def mass(self) -> np.ndarray:
        """Return Σ exp(logp) of every state, in float64. Every state has a candidate."""
        return np.add.reduceat(np.exp(self.logp.astype(np.float64)), np.cumsum(self.counts) - self.counts)

    def first(self, most: np.ndarray | int) -> "Ragged":
        """Return at most ``most`` candidates of every state, the most probable ones.

        Examples:
            >>> Ragged(np.array([7, 3, 5]), np.log([0.5, 0.3, 0.9]), np.array([2, 1]), np.array([0.8, 0.9])).first(1).ids
            array([7, 5])
        """
        place = np.arange(len(self.ids)) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        keep = place < np.repeat(np.broadcast_to(most, self.counts.shape), self.counts)
        cut = Ragged(self.ids[keep], self.logp[keep], np.minimum(self.counts, most), self.kept_mass)
        return replace(cut, kept_mass=cut.mass)


@dataclass(frozen=True)
class Candidates:
    """Hold A_p of N states, padded to the widest. Slots with ``legal`` False hold id 0 and log-prob −inf."""

    ids: Int[Tensor, "N K"]
    logp: Float[Tensor, "N K"]  # true log-probs, over the whole vocabulary, descending
    legal: Bool[Tensor, "N K"]
    kept_mass: Float[Tensor, " N"]  # Σ exp(logp) over legal slots

    @property
    def counts(self) -> Int[Tensor, " N"]:
        """Return |A_p| of each state."""
        return self.legal.sum(-1)

    def to_ragged(self) -> Ragged:
        """Return the same candidates without padding, on the CPU.

        Examples:
            >>> top_p_candidates(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]]).log(), p=0.75).to_ragged().counts
            array([2, 1])
        """
        legal = self.legal.cpu()
        ids, logp, kept = (x.cpu() for x in (self.ids, self.logp, self.kept_mass))
        return Ragged(ids[legal].numpy(), logp[legal].numpy(), legal.sum(-1).numpy(), kept.numpy())

    @classmethod
    def from_ragged(cls, ragged: Ragged) -> "Candidates":
        """Return candidates padded to the widest state, with the values and dtypes of ``ragged``.

        Examples:
            >>> ragged = Ragged(np.array([7, 3, 5]), np.log([0.5, 0.3, 0.9]), np.array([2, 1]), np.array([0.8, 0.9]))
            >>> Candidates.from_ragged(ragged).ids
            tensor([[7, 3],
                    [5, 0]])
        """
        found = pad_candidates(*(torch.from_numpy(x) for x in (ragged.ids, ragged.logp, ragged.counts)))
        return cls(*found, kept_mass=torch.from_numpy(ragged.kept_mass))


def pad_candidates(
    ids: Int[Tensor, " N"], logp: Float[Tensor, " N"], counts: Int[Tensor, "*B"]
) -> tuple[Int[Tensor, "*B K"], Float[Tensor, "*B K"], Bool[Tensor, "*B K"]]:
    """Return ids, log-probs and which slots hold a candidate, padded to the widest state, on the device of the arguments.

    Args:
        ids: the candidates of all states in sequence.
        logp: their log-probs.
        counts: number of candidates of every state; N is their sum.
    """
    flat = counts.reshape(-1).long()
    width, states = int(flat.max()) if len(flat) else 0, torch.arange(len(flat), device=flat.device)
    shift = states * width - (flat.cumsum(0) - flat)  # from a candidate's place in the sequence to its slot
    slots = torch.arange(len(ids), device=flat.device) + shift.repeat_interleave(flat, output_size=len(ids))
    shape = (*counts.shape, width)
    legal = torch.zeros(shape, dtype=torch.bool, device=flat.device)
    legal.view(-1)[slots] = True
    padded = torch.zeros(shape, dtype=ids.dtype, device=flat.device), torch.full_like(legal, -torch.inf, dtype=logp.dtype)
    for out, values in zip(padded, (ids, logp), strict=True):
        out.view(-1)[slots] = values
    return *padded, legal


def check_top_p(p: float, name: str = "teacher_top_p") -> None:
    """Raise ``ConfigError`` unless 0 < p ≤ 1."""
    if not 0.0 < p <= 1.0:
        raise ConfigError(f"{name}={p} is outside (0, 1]: it is the share of the teacher's probability to keep.")


def nucleus_mask(sorted_logp: Float[Tensor, "*N K"], p: float) -> Bool[Tensor, "*N K"]:
    """Keep while the mass before a token is < p. ``sorted_logp`` descends along K. p = 1 keeps every token.

    The running mass is summed in float64: in float32 its rounding error over 50k tokens reaches the tail masses asked for.
    """
    if p >= 1.0:
        return sorted_logp > -torch.inf
    mass = sorted_logp.double().exp()
    before = mass.cumsum(-1) - mass
    # Nothing stands before the first token, so at least one is kept.
    return (before < p) & (sorted_logp > -torch.inf)


def rule_mask(rule: CandidateRule, sorted_logp: Float[Tensor, "*N K"]) -> Bool[Tensor, "*N K"]:
    """Return which candidates a rule keeps; at least one always stays.

    ``top_k`` keeps the ``value`` most probable candidates. ``min_p`` keeps those at least ``value`` times as probable as the first.
    ``adaptive`` keeps a candidate a while it lowers the tail loss −log m, m the mass kept, by at least ``value`` nats:
    log(m + π(a)) − log m ≥ value.

    ``adaptive`` gives every state its own p. For no other choice of sets of the same total size is the summed tail loss smaller,
    since a further token always gains less than the one before it. And the tail loss is what matters: for the reward that makes
    π soft-optimal, V(s_0) − V^{proj π}(s_0) = E_{proj π} Σ_t γ^t (−log m(s_t)) exactly, at most −γ/(1−γ)·log min m after s_0.

    Args:
        rule: name and value.
        sorted_logp: log-probs that descend along K, −inf where there is no candidate.
    """
    exists = sorted_logp > -torch.inf
    if rule.name == "top_k":
        return exists & (torch.arange(sorted_logp.shape[-1], device=sorted_logp.device) < int(rule.value))
    if rule.name == "min_p":
        return exists & (sorted_logp >= sorted_logp[..., :1] + math.log(rule.value))
    mass = sorted_logp.double().exp()
    kept = mass.cumsum(-1)
    # Before the first token m = 0: its gain is infinite.
    return exists & (kept.log() - (kept - mass).clamp(min=0.0).log() >= rule.value)


def top_p_candidates(logp: Float[Tensor, "N V"], p: float, max_candidates: int | None = None) -> Candidates:
    """Return A_p of each row of log-probs.

    Args:
        logp: [N, V] normalised log-probs (a temperature-1 ``log_softmax`` of the teacher's logits, float32 or wider).
        p: mass to reach, in (0, 1].
        max_candidates: optional cap; it may leave ``kept_mass`` below p, and the smallest kept mass then stands for p in κ.

    Raises:
        ConfigError: p outside (0, 1] or a cap below 1.

    Examples:
        Of the probabilities .2, .5, .3 the tokens 1 and 2 reach p = .75, in descending order; a mass of exactly p is enough.

        >>> logp = torch.tensor([[0.2, 0.5, 0.3], [0.8, 0.1, 0.1]]).log()
        >>> found = top_p_candidates(logp, p=0.75)
        >>> found.ids
        tensor([[1, 2],
                [0, 0]])
        >>> found.legal
        tensor([[ True,  True],
                [ True, False]])
        >>> found.kept_mass
        tensor([0.8000, 0.8000])
        >>> top_p_candidates(logp, p=0.75, max_candidates=1).kept_mass
        tensor([0.5000, 0.8000])
    """
    check_top_p(p)
    if max_candidates is not None and max_candidates < 1:
        raise ConfigError(f"max_candidates={max_candidates} must be at least 1, or absent for no cap.")
    vocab = logp.shape[-1]
    limit = vocab if max_candidates is None else min(max_candidates, vocab)
    values, ids, keep = _narrow_nucleus(logp, p, limit)
    return _padded(ids, values, keep)


def spread_tail(logp: Float[Tensor, "*B K"], ids: Int[Tensor, "*B K"], legal: Bool[Tensor, "*B K"], vocab_size: int) -> Float[Tensor, "*B V"]:
    """Return log-probs over the vocabulary: π* on A_p, and an equal share of the remaining mass on each of the V − |A_p| other tokens.

    Of all distributions that agree with what is known of π* the one of the largest entropy.
    """
    outside = (vocab_size - legal.sum(-1)).clamp(min=1).to(logp.dtype)
    share = log_tail(soft_value(logp, legal)) - outside.log()
    # Slots that hold no candidate write past the end, which is cut off.
    every = share.unsqueeze(-1).expand(*share.shape, vocab_size + 1).clone()
    return every.scatter_(-1, torch.where(legal, ids, vocab_size), logp)[..., :vocab_size]


def _narrow_nucleus(logp: Tensor, p: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sorted values, ids and keep-mask of each row, wide enough for the widest nucleus (or the limit)."""
    width = limit if p >= 1.0 else min(FIRST_TOPK, limit)
    values, ids = logp.topk(width, dim=-1)
    keep = nucleus_mask(values, p)
    while width < limit:
        # A row is settled once some token of it was refused: its nucleus ends inside the window.
        open_rows = keep.all(-1).nonzero().squeeze(-1)
        if len(open_rows) == 0:
            break
        width = min(width * TOPK_GROWTH, limit)
        wide_values, wide_ids = logp[open_rows].topk(width, dim=-1)
        values = _widen(values, width, -torch.inf).index_copy(0, open_rows, wide_values)
        ids = _widen(ids, width, 0).index_copy(0, open_rows, wide_ids)
        keep = nucleus_mask(values, p)
    return values, ids, keep


def _padded(ids: Tensor, logp: Tensor, keep: Tensor) -> Candidates:
    """Return candidates as wide as the widest state of ``keep`` needs."""
    width = int(keep.sum(-1).max().item()) if len(keep) else 1
    ids, logp, keep = ids[:, :width], logp[:, :width], keep[:, :width]
    logp = logp.masked_fill(~keep, -torch.inf)
    return Candidates(ids=ids.masked_fill(~keep, 0), logp=logp, legal=keep, kept_mass=logp.double().exp().sum(-1).to(logp.dtype))


def _widen(x: Tensor, width: int, fill: float | int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]), value=fill)
