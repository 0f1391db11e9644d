"""A_p of whole rows against a sorted loop, on nuclei of one token to all of them."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill.mdp.candidates import FIRST_TOPK, TOPK_GROWTH, Candidates, Ragged, check_top_p, nucleus_mask, top_p_candidates
from tdistill.runtime.errors import ConfigError

SMOLLM2_VOCAB = 49_152


def random_logp(seed: int, rows: int, vocab: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, vocab, generator=g, dtype=dtype)).log_softmax(-1)


def nucleus_of(count: int, vocab: int, seed: int) -> Tensor:
    """One float32 row whose A_.8 has about ``count`` tokens: they share .82 of the mass unevenly, all others the rest."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(vocab, generator=g, dtype=torch.float64) + 0.5
    chosen = torch.randperm(vocab, generator=g)[:count]
    row = 0.18 * weights / weights.sum()
    row[chosen] += 0.82 * weights[chosen] / weights[chosen].sum()
    return (row / row.sum()).log().float()


def assert_equals_oracle(candidates: Candidates, logp: Tensor, p: float, cap: int | None = None) -> None:
    for i, row in enumerate(logp.tolist()):
        want = oracles.top_p_set(row, p, cap)
        legal = candidates.legal[i]
        ids = candidates.ids[i][legal]
        assert len(set(ids.tolist())) == len(want)
        # By value, not by token: float32 log-probs of a large vocabulary have ties, whose order is free.
        assert torch.equal(logp[i, ids], logp[i, want])
        assert torch.equal(candidates.logp[i][legal], logp[i, want])
        assert legal.tolist() == [k < len(want) for k in range(len(legal))]
        assert candidates.logp[i][~legal].eq(-torch.inf).all()
        assert candidates.ids[i][~legal].eq(0).all()
        assert candidates.counts[i] == len(want)
        mass = math.fsum(math.exp(row[a]) for a in want)
        assert candidates.kept_mass[i].item() == pytest.approx(mass, rel=4 * torch.finfo(logp.dtype).eps)
    assert candidates.legal.shape[1] == int(candidates.counts.max())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.001, 1.0), cap=st.none() | st.integers(1, 12), scale=st.floats(0.01, 8.0))
def test_equals_the_sorted_loop(seed: int, p: float, cap: int | None, scale: float) -> None:
    logp = random_logp(seed, rows=3, vocab=11, scale=scale)
    assert_equals_oracle(top_p_candidates(logp, p, cap), logp, p, cap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p_is_reached_and_never_by_a_needless_token(dtype: torch.dtype) -> None:
    logp = random_logp(1, rows=50, vocab=400, dtype=dtype)
    candidates = top_p_candidates(logp, 0.9)
    mass = torch.where(candidates.legal, candidates.logp.double().exp(), 0.0)
    assert (mass.sum(-1) >= 0.9).all()
    least = mass.gather(-1, candidates.counts.unsqueeze(-1) - 1).squeeze(-1)
    assert (mass.sum(-1) - least < 0.9).all()


def test_growth_reaches_every_width_at_once() -> None:
    """128, 1,024 and 8,192 tokens are tried before the whole vocabulary; one batch holds a nucleus of each kind."""
    wide = [1, 60, 600, 4000, 20_000]
    assert [FIRST_TOPK, FIRST_TOPK * TOPK_GROWTH, FIRST_TOPK * TOPK_GROWTH**2] == [128, 1024, 8192]
    logp = torch.stack([nucleus_of(count, SMOLLM2_VOCAB, seed) for seed, count in enumerate(wide)])
    candidates = top_p_candidates(logp, 0.8)
    assert_equals_oracle(candidates, logp, 0.8)
    counts = candidates.counts.tolist()
    assert counts[0] == 1
    assert 1 < counts[1] < 128 < counts[2] < 1024 < counts[3] < 8192 < counts[4]
    assert 3500 < counts[3] < 4500


def test_growth_stops_at_the_cap() -> None:
    logp = torch.stack([nucleus_of(count, 3000, seed) for seed, count in enumerate([60, 600, 2900])])
    candidates = top_p_candidates(logp, 0.8, max_candidates=300)
    assert_equals_oracle(candidates, logp, 0.8, cap=300)
    assert candidates.kept_mass[0] >= 0.8 > candidates.kept_mass[1] > candidates.kept_mass[2]


def test_rows_do_not_depend_on_their_batch() -> None:
    """Padding to a wide neighbour leaves a narrow row's candidates as they are alone."""
    logp = torch.stack([nucleus_of(count, 3000, seed) for seed, count in enumerate([1, 60, 600, 2900])])
    together = top_p_candidates(logp, 0.8)
    for i in range(len(logp)):
        alone = top_p_candidates(logp[i : i + 1], 0.8)
        width = alone.legal.shape[1]
        assert torch.equal(alone.ids[0], together.ids[i, :width])
        assert torch.equal(alone.kept_mass[0], together.kept_mass[i])
        assert not together.legal[i, width:].any()


@pytest.mark.parametrize("p", [1e-300, 1e-9, 0.2])
def test_at_least_one_token(p: float) -> None:
    logp = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64).log()
    candidates = top_p_candidates(logp, p)
    assert candidates.ids.tolist() == [[1]]
    assert candidates.kept_mass.item() == pytest.approx(0.6)


def test_p_1_keeps_every_token_that_can_occur() -> None:
    logp = random_logp(3, rows=4, vocab=2000, scale=8.0, dtype=torch.float32)
    assert top_p_candidates(logp, 1.0).legal.all()
    logp = torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.3, 0.5]], dtype=torch.float64).log()
    candidates = top_p_candidates(logp, 1.0)
    assert candidates.counts.tolist() == [2, 3]
    assert set(candidates.ids[0][candidates.legal[0]].tolist()) == {0, 2}


def test_impossible_tokens_are_never_candidates() -> None:
    """−inf fills the first window of 128 and more: no growth may bring such tokens in."""
    logp = torch.full((2, 500), -torch.inf)
    logp[0, [7, 70]] = torch.tensor([0.25, 0.75]).log()
    logp[1, 100:400] = -math.log(300)
    candidates = top_p_candidates(logp, 0.9999999)
    assert candidates.counts.tolist() == [2, 300]
    assert candidates.ids[0, :2].tolist() == [70, 7]


@pytest.mark.parametrize(("p", "count"), [(0.5, 1), (0.75, 2), (0.875, 3), (0.500001, 2), (0.874999, 3), (0.876, 4)])
def test_a_mass_of_exactly_p_is_enough(p: float, count: int) -> None:
    logp = torch.tensor([[-1.0, -2.0, -3.0, -3.0]], dtype=torch.float64) * math.log(2)
    assert torch.allclose(logp.exp().sum(), torch.ones((), dtype=torch.float64))
    assert nucleus_mask(logp, p).sum() == count


def test_log_probs_are_not_renormalised() -> None:
    logp = random_logp(5, rows=8, vocab=50)
    candidates = top_p_candidates(logp, 0.7)
    total = torch.where(candidates.legal, candidates.logp.exp(), 0.0).sum(-1)
    torch.testing.assert_close(total, candidates.kept_mass)
    assert (total < 0.999).all()


def test_no_rows_give_no_candidates() -> None:
    assert top_p_candidates(torch.zeros(0, 300), 0.8).counts.tolist() == []


@pytest.mark.parametrize("p", [0.0, -0.1, 1.0001, math.nan])
def test_p_outside_its_range_is_refused_by_name(p: float) -> None:
    with pytest.raises(ConfigError, match="teacher_top_p"):
        top_p_candidates(torch.zeros(1, 4).log_softmax(-1), p)
    with pytest.raises(ConfigError, match=r"my_p=.*\(0, 1\]"):
        check_top_p(p, name="my_p")


@pytest.mark.parametrize("cap", [0, -3])
def test_a_cap_below_one_is_refused(cap: int) -> None:
    with pytest.raises(ConfigError, match=f"max_candidates={cap}"):
        top_p_candidates(torch.zeros(1, 4).log_softmax(-1), 0.8, cap)


def test_tail_masses_below_float32_resolution_are_told_apart() -> None:
    """In float32 the mass before the second token rounds to 1; summed in float64 it is 1 − 3e-8, below p."""
    logp = torch.tensor([[-3e-8, -18.0, -20.0]], dtype=torch.float32)
    assert nucleus_mask(logp, 1 - 2e-8).tolist() == [[True, True, False]]


def assert_same(found: Candidates, wanted: Candidates) -> None:
    for name in ("ids", "logp", "legal", "kept_mass"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), p=st.floats(0.05, 1.0))
def test_ragged_candidates_are_padded_to_what_they_were(seed: int, rows: int, p: float) -> None:
    candidates = top_p_candidates(random_logp(seed, rows, vocab=13), p)
    ragged = candidates.to_ragged()
    assert ragged.counts.tolist() == candidates.counts.tolist()
    assert len(ragged.ids) == len(ragged.logp) == ragged.counts.sum()
    assert_same(Candidates.from_ragged(ragged), candidates)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5))
def test_states_that_are_split_and_joined_are_the_same(seed: int, rows: int) -> None:
    candidates = top_p_candidates(random_logp(seed, rows, vocab=13), 0.8)
    states = candidates.to_ragged().split()
    assert len(states) == rows
    for state, ids, legal in zip(states, candidates.ids, candidates.legal, strict=True):
        assert state.ids.tolist() == ids[legal].tolist()
        assert state.counts.tolist() == [len(state.ids)]
    assert_same(Candidates.from_ragged(Ragged.join(states)), candidates)


def test_candidates_that_are_cut_are_those_of_the_smaller_p() -> None:
    logp = random_logp(7, rows=6, vocab=40)
    candidates = top_p_candidates(logp, 0.9)
    narrow = top_p_candidates(logp, 0.5)
    cut = candidates.to_ragged().first(nucleus_mask(candidates.logp, 0.5).sum(-1).numpy())
    found = Candidates.from_ragged(cut)
    for name in ("ids", "logp", "legal"):
        assert torch.equal(getattr(found, name), getattr(narrow, name)), name
    torch.testing.assert_close(found.kept_mass, narrow.kept_mass.double())


def test_ragged_candidates_keep_their_types() -> None:
    ragged = Ragged(np.array([5, 2, 9], np.int64), np.array([-0.5, -1.5, -0.1]), np.array([2, 1]), np.array([0.83, 0.9]))
    padded = Candidates.from_ragged(ragged)
    assert (padded.ids.dtype, padded.logp.dtype) == (torch.int64, torch.float64)
    assert padded.ids.tolist() == [[5, 2], [9, 0]]
    assert padded.logp.tolist() == [[-0.5, -1.5], [-0.1, -math.inf]]
    assert padded.kept_mass.tolist() == [0.83, 0.9]
