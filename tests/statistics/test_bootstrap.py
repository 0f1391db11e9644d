"""Comparing two methods over training seeds and prompts: against loops, and on data whose truth is known."""

import math

import numpy as np
import pytest

from tdistill.runtime.errors import DataError
from tdistill.statistics.bootstrap import hierarchical_bootstrap, resampled_means, variance_of_difference

# Standard deviations of what is peculiar to a training seed, to a prompt (between the methods), to one seed on one prompt.
COMPONENTS = {"seeds": (1.0, 0.1, 0.1), "prompts": (0.0, 3.0, 0.1), "residual": (0.0, 0.0, 3.0), "mixed": (0.3, 2.0, 3.0)}
PROMPTS = 40


def scores(table, first_seed=0):
    return {first_seed + s: {f"p{i}": float(v) for i, v in enumerate(row)} for s, row in enumerate(table)}


def draw(rng, seeds, components, difference=0.0):
    """Two methods' scores [seeds, prompts] whose true means differ by ``difference``."""
    of_seed, of_prompt, of_both = components
    ability, contrast = rng.normal(0, 5, PROMPTS), rng.normal(0, of_prompt, PROMPTS) / 2
    a, b = (rng.normal(0, of_seed, (n, 1)) + ability + rng.normal(0, of_both, (n, PROMPTS)) for n in seeds)
    return a + contrast + difference, b - contrast


def p_values(seeds, components, calibrated=True, paired=True, runs=300, difference=0.0):
    rng = np.random.default_rng(0)
    found = []
    for k in range(runs):
        a, b = draw(rng, seeds, components, difference)
        other = scores(b, 0 if paired else 100)
        found.append(hierarchical_bootstrap(scores(a), other, resamples=600, seed=k, calibrated=calibrated).p_value)
    return np.array(found)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("name", COMPONENTS)
def test_two_equal_methods_are_told_apart_about_one_time_in_twenty(name, seeds, paired):
    # 300 runs at .05: standard error .013. Where seeds hardly matter the estimate of their variance makes it cautious.
    share = float((p_values((seeds, seeds), COMPONENTS[name], paired=paired) < 0.05).mean())
    assert share <= 0.05 + 3 * 0.013
    if name in ("seeds", "prompts"):
        assert share >= 0.05 - 3 * 0.013


def test_without_calibration_few_seeds_are_trusted_too_much():
    assert (p_values((2, 2), COMPONENTS["seeds"], calibrated=False, runs=100) < 0.05).mean() > 0.2


def test_a_method_with_one_seed_counts_as_fixed():
    share = float((p_values((1, 5), COMPONENTS["prompts"], paired=False) < 0.05).mean())
    assert abs(share - 0.05) <= 3 * 0.013


def test_a_real_difference_is_found():
    assert (p_values((5, 5), COMPONENTS["mixed"], difference=3.0, runs=60) < 0.05).mean() > 0.8


def test_the_interval_covers_the_truth_and_agrees_with_p():
    rng, covered = np.random.default_rng(1), []
    for k in range(300):
        a, b = draw(rng, (4, 4), COMPONENTS["mixed"], difference=1.0)
        found = hierarchical_bootstrap(scores(a), scores(b), resamples=600, seed=k)
        covered.append(found.low <= 1.0 <= found.high)
        assert found.low <= found.difference <= found.high
        if abs(found.p_value - 0.05) > 0.01:  # quantiles of 600 resamples
            assert (found.p_value < 0.05) == (not found.low <= 0.0 <= found.high)
    assert np.mean(covered) >= 0.95 - 3 * 0.013


def test_resampling_equals_a_loop():
    rng = np.random.default_rng(2)
    groups = [rng.normal(size=(3, 4)), rng.normal(size=(2, 4))]
    prompt_rng, *seed_rngs = np.random.default_rng(5).spawn(3)
    expected = []
    for _ in range(50):
        prompts = [int(i) for i in prompt_rng.integers(4, size=4)]
        total = 0.0
        for group, generator in zip(groups, seed_rngs, strict=True):
            seeds = [int(s) for s in generator.integers(len(group), size=len(group))]
            total += sum(group[s][p] for s in seeds for p in prompts) / (len(seeds) * len(prompts))
        expected.append(total)
    for entries in (1, 30, 10**6):  # one, a few, all resamples at once
        np.testing.assert_allclose(resampled_means(groups, 50, 5, entries), expected, rtol=0, atol=1e-14)


def test_the_variance_is_unbiased_for_known_components():
    (of_seed, of_prompt, of_both), seeds = (0.7, 1.5, 2.0), 4
    rng = np.random.default_rng(3)
    found = [variance_of_difference([np.subtract(*draw(rng, (seeds, seeds), (of_seed, of_prompt, of_both)))])[0] for _ in range(2000)]
    truth = 2 * of_seed**2 / seeds + of_prompt**2 / PROMPTS + 2 * of_both**2 / (seeds * PROMPTS)
    assert math.isclose(float(np.mean(found)), truth, rel_tol=0.08)


def test_identical_scores_give_p_of_one():
    table = scores(np.random.default_rng(4).normal(size=(3, 10)))
    found = hierarchical_bootstrap(table, {s: dict(v) for s, v in table.items()})
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_one_seed_leaves_the_prompts():
    a, b = draw(np.random.default_rng(5), (1, 1), (0.0, 2.0, 1.0))
    found = hierarchical_bootstrap(scores(a), scores(b))
    d = (a - b)[0]
    half = 2.023 * d.std(ddof=1) / math.sqrt(PROMPTS)  # Student's t of 39 degrees of freedom
    assert found.seeds == (1, 1)
    assert found.low == pytest.approx(d.mean() - half, rel=0.08, abs=0.08)
    assert found.high == pytest.approx(d.mean() + half, rel=0.08, abs=0.08)


def test_a_constant_difference_is_certain():
    table = np.random.default_rng(6).normal(size=(3, 10))
    found = hierarchical_bootstrap(scores(table + 0.25), scores(table), resamples=999)
    assert found.difference == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.p_value == pytest.approx(2 / 1000)


def test_prompts_that_a_run_lacks_are_left_out_and_counted():
    a, b = scores([[1.0, 2.0, 3.0, 4.0]]), scores([[0.0, 1.0, math.nan, 1.0]])
    del b[0]["p0"]
    found = hierarchical_bootstrap(a, b, resamples=100)
    assert (found.prompts, found.left_out, found.difference) == (2, 2, 2.0)


def test_the_same_seed_gives_the_same_numbers_and_the_order_of_prompts_is_none():
    a, b = (scores(x) for x in draw(np.random.default_rng(7), (3, 3), COMPONENTS["mixed"]))
    turned = {s: dict(reversed(v.items())) for s, v in a.items()}
    assert hierarchical_bootstrap(a, b, resamples=200) == hierarchical_bootstrap(turned, b, resamples=200)
    assert hierarchical_bootstrap(a, b, resamples=200) != hierarchical_bootstrap(a, b, resamples=200, seed=1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {0: {"p": 1.0}}, "at least one training seed of each method, got 0 and 1"),
        ({0: {"p": 1.0}}, {0: {"q": 1.0}}, "No prompt has a value in all 2 runs"),
        ({0: {"p": 1.0}}, {0: {"p": 2.0}}, "One training seed and one prompt"),
    ],
)
def test_what_can_not_be_compared_is_refused(a, b, message):
    with pytest.raises(DataError, match=message):
        hierarchical_bootstrap(a, b)
