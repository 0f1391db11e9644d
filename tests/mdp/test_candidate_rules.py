"""Rules that cut the top-p set further, against plain loops; ``adaptive`` against every other choice of sets of its size."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tdistill.mdp.candidates import rule_mask
from tdistill.recipe.schema import CandidateRule


def loop(name: str, value: float, probs: list[float]) -> int:
    """How many of descending probabilities stay."""
    kept, mass = 0, 0.0
    for p in probs:
        keep = {"top_k": kept < value, "min_p": p >= value * probs[0], "adaptive": not mass or math.log(mass + p) - math.log(mass) >= value}
        if not keep[name]:
            break
        kept, mass = kept + 1, mass + p
    return kept


def descending(seed: int, rows: int, width: int, missing: int) -> torch.Tensor:
    """Rows of log-probs on a candidate set: part of a distribution, with −inf past its end."""
    g = torch.Generator().manual_seed(seed)
    logp = (2.0 * torch.randn(rows, width + 5, generator=g, dtype=torch.float64)).log_softmax(-1).sort(-1, descending=True).values
    logp = logp[:, :width]
    logp[0, width - missing :] = -math.inf
    return logp


VALUES = {"top_k": [1, 3, 50], "min_p": [0.01, 0.3, 1.0], "adaptive": [1e-6, 0.02, 0.2, 5.0]}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 9), case=st.sampled_from([(n, v) for n, vs in VALUES.items() for v in vs]))
def test_equals_the_loop(seed, width, case):
    logp = descending(seed, rows=4, width=width, missing=1)
    mask = rule_mask(CandidateRule(name=case[0], value=case[1]), logp)
    for row, kept in zip(logp, mask, strict=True):
        count = loop(*case, [math.exp(x) for x in row.tolist() if x > -math.inf])
        assert kept.tolist() == [i < count for i in range(width)]
        assert count >= 1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), value=st.sampled_from([0.01, 0.05, 0.2]))
def test_no_sets_of_the_same_total_size_lose_less(seed, value):
    logp = descending(seed, rows=3, width=6, missing=0)
    sizes = rule_mask(CandidateRule(name="adaptive", value=value), logp).sum(-1).tolist()
    loss = -logp.exp().cumsum(-1).log()

    def total(counts: tuple[int, ...]) -> float:
        return sum(loss[i, c - 1].item() for i, c in enumerate(counts))

    others = [c for c in itertools.product(range(1, 7), repeat=3) if sum(c) == sum(sizes)]
    assert total(tuple(sizes)) <= min(map(total, others)) + 1e-12


def test_adaptive_keeps_more_where_the_teacher_is_less_sure():
    logp = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.28, 0.26, 0.24, 0.22]], dtype=torch.float64).log()
    assert rule_mask(CandidateRule(name="adaptive", value=0.05), logp).sum(-1).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_k", 0.5, "whole number ≥ 1, got 0.5"),
        ("top_k", 2.5, "whole number ≥ 1"),
        ("min_p", 1.5, r"in \(0, 1\], got 1.5"),
        ("adaptive", 0.0, "value\n.*greater than 0"),
        ("adaptve", 0.1, "name\n.*'top_k', 'min_p' or 'adaptive'"),
    ],
)
def test_values_outside_their_range_are_refused(name, value, message):
    with pytest.raises(ValidationError, match=message):
        CandidateRule(name=name, value=value)
