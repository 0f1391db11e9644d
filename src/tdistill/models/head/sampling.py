"""Draw tokens that stand for all others in the log-partition, each with a known probability to be drawn.

For a state s with the tokens E(s) whose logits are known (its candidates and the token taken) and a drawn set S, with i(v) = P(v ∈ S):

    Z(s) ≈ Σ_{v ∈ E(s)} exp ℓ(v) + Σ_{v ∈ S∖E(s)} exp ℓ(v) / i(v)

The mean of the right-hand side is Z(s) (Horvitz & Thompson 1952). Its logarithm is too small by about half its relative variance. E(s) is never
estimated, so the probability of a candidate is at most 1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SAMPLES = 4096
# Share of the draw that goes to all tokens alike. The rest goes to the candidates of the batch, by how often they occur.
UNIFORM_SHARE = 0.5


@dataclass(frozen=True)
class Drawn:
    """Hold drawn tokens, −log i(v) of each, and the pairs (state, place among the drawn) that are known already."""

    ids: Int[Tensor, " S"]
    log_weight: Float[Tensor, " S"]
    known: tuple[Int[Tensor, " P"], Int[Tensor, " P"]]


def draw(proposal: Float[Tensor, " V"], samples: int, seed: int, known: tuple[Int[Tensor, " P"], Int[Tensor, " P"]]) -> Drawn:
    """Draw about ``samples`` different tokens: i(v) = min(1, c·proposal(v)) with Σ i = ``samples``.

    It is systematic sampling (Madow 1949): along the ids of a BPE vocabulary, which are about in the order of frequency, it spreads the draw
    over frequent and rare tokens.

    Args:
        proposal: [V] how likely each token is drawn, up to a factor.
        samples: number of tokens; from V on every token is drawn, and the sum is exact.
        seed: seed of the draw.
        known: pairs (state, token) whose logits are known.
    """
    chance = inclusion(proposal.double(), samples)
    start = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(chance.device)
    upto = (chance.cumsum(0) + start).floor()
    before = torch.cat([torch.zeros_like(upto[:1]), upto[:-1]])
    ids = ((upto > before) | (chance == 1.0)).nonzero().squeeze(-1)
    states, tokens = known
    places = torch.searchsorted(ids, tokens).clamp(max=max(len(ids) - 1, 0))
    hit = ids[places] == tokens if len(ids) else torch.zeros_like(tokens, dtype=torch.bool)
    return Drawn(ids, -chance[ids].log().float(), (states[hit], places[hit]))


def proposal_of(tokens: Int[Tensor, " P"], vocab_size: int) -> Float[Tensor, " V"]:
    """Return how likely each token is drawn: half by how often it is a candidate in the batch, half all alike."""
    often = torch.bincount(tokens, minlength=vocab_size).double()
    return (1.0 - UNIFORM_SHARE) * often / often.sum().clamp(min=1.0) + UNIFORM_SHARE / vocab_size


def inclusion(weights: Float[Tensor, " V"], samples: int) -> Float[Tensor, " V"]:
    """Return min(1, c·w) with the c for which they add up to ``samples``, or to the number of w > 0 if that is smaller.

    Examples:
        >>> inclusion(torch.tensor([8.0, 1.0, 1.0, 0.0], dtype=torch.float64), samples=2)
        tensor([1.0000, 0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    certain = torch.zeros_like(weights, dtype=torch.bool)
    while True:
        rest = torch.where(certain, 0.0, weights)
        left, total = samples - int(certain.sum()), float(rest.sum())
        if left <= 0 or total <= 0.0:
            return certain.to(weights.dtype)
        chance = rest * (left / total)
        more = chance >= 1.0
        if not more.any():
            return torch.where(certain, 1.0, chance)
        certain |= more
