import numpy as np
import pytest

from tdistill.statistics.bootstrap import hierarchical_bootstrap
from tdistill.statistics.estimate import estimate, paired_difference
from tdistill.statistics.pooling import compared, pooled

PROMPTS = 12


def scores(seeds: int, shift: float = 0.0, first: int = 0, seed: int = 0) -> dict[int, dict[str, float]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 1, PROMPTS) + rng.normal(0, 0.2, (seeds, PROMPTS)) + shift
    return {first + s: {f"p{i}": float(v) for i, v in enumerate(row)} for s, row in enumerate(x)}


def test_pooling_where_there_is_little() -> None:
    nothing, one = pooled({1: {"a": float("nan")}}), pooled({1: {"a": 2.0}})
    assert (np.isnan(nothing.mean), nothing.n) == (True, 0)
    assert (one.mean, np.isnan(one.stderr)) == (2.0, True)
    lonely = compared({1: {"a": 2.0}}, {1: {"a": 1.0}})
    assert (lonely.difference.mean, lonely.difference.n) == (1.0, 1)
    assert np.isnan([lonely.difference.stderr, lonely.low, lonely.high, lonely.p_value]).all()
    assert compared({1: {"a": 2.0, "b": 3.0}}, {1: {"c": 1.0}}) is None
    apart = compared({1: {"a": 2.0, "b": 3.5}}, {2: {"a": 1.0, "b": 1.0}})
    assert (apart.paired, apart.difference.mean) == (False, 1.75)
    assert apart.difference.stderr == pytest.approx(np.std([1.0, 2.5], ddof=1) / np.sqrt(2))


def test_one_seed_is_the_estimate_over_prompts():
    values = scores(1)[0]
    got, want = pooled({17: values}), estimate(list(values.values()))
    assert (got.mean, got.stderr, got.n) == pytest.approx((want.mean, want.stderr, want.n), rel=1e-12)


def test_one_seed_each_is_the_paired_difference_over_prompts_whether_the_seeds_are_named_the_same_or_not():
    a, b = scores(1, seed=1)[0], scores(1, seed=2)[0]
    want = paired_difference(list(a.values()), list(b.values()))
    for other in (17, None):
        got = compared({17: a}, {other: b})
        assert (got.difference.mean, got.difference.stderr, got.difference.n) == pytest.approx((want.mean, want.stderr, want.n), rel=1e-12)


def test_a_system_without_seeds_counts_as_the_same_for_every_seed():
    a, b = scores(3, shift=0.4, seed=3), scores(1, seed=4)[0]
    alone, repeated = compared(a, {None: b}), compared(a, dict.fromkeys(a, b))
    assert (alone.paired, repeated.paired) == (False, True)
    assert alone.difference.mean == pytest.approx(repeated.difference.mean, rel=1e-12)
    assert alone.difference.stderr == pytest.approx(repeated.difference.stderr, rel=1e-12)
    assert alone.p_value == pytest.approx(repeated.p_value, abs=0.02)


def test_seeds_are_paired_where_both_have_them_and_the_others_are_left_out():
    a, b = scores(3, seed=5), scores(3, first=1, seed=6)
    found, want = compared(a, b), hierarchical_bootstrap({s: a[s] for s in (1, 2)}, {s: b[s] for s in (1, 2)})
    assert (found.seeds, found.paired) == ((2, 2), True)
    assert (found.difference.mean, found.low, found.high, found.p_value) == (want.difference, want.low, want.high, want.p_value)


def test_values_without_a_finite_spread_have_neither_interval_nor_p_value():
    found = compared({1: {"a": 1e308, "b": -1e308}}, {1: {"a": -1e308, "b": 1e308}})
    assert np.isnan([found.low, found.high, found.p_value]).all()
