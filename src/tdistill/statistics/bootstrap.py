"""Compare two methods by a bootstrap of the difference of their means, over training seeds and over prompts at once."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdistill.runtime.errors import DataError

RESAMPLES = 10_000
COVERAGE = 0.95
# Entries of the largest array in memory at once: 16 MB of float64.
CHUNK_ENTRIES = 2_000_000

ScoresBySeed = Mapping[Hashable, Mapping[str, float]]  # training seed → prompt id → value


@dataclass(frozen=True)
class Bootstrapped:
    """Hold the difference of two means, a − b, with its interval and its two-sided p-value.

    0 lies outside the interval if p < 1 − coverage, up to one resample.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seeds: tuple[int, int]  # number of training seeds of a and of b; a method with one seed counts as fixed
    prompts: int
    left_out: int  # prompts that have no value in some seed of either method
    paired_seeds: bool


def hierarchical_bootstrap(
    a: ScoresBySeed, b: ScoresBySeed, *, resamples: int = RESAMPLES, seed: int = 0, coverage: float = COVERAGE, calibrated: bool = True
) -> Bootstrapped:
    """Compare two methods that were trained with several seeds and measured on the same prompts.

    Every resample draws training seeds with replacement, and prompts with replacement, independently. All seeds were measured on
    the same prompts, so a drawn prompt counts for all drawn seeds and for both methods. If both methods have the same seeds, these
    are paired too; otherwise the seeds of each method are drawn separately.

    Resampling alone (``calibrated=False``, the pigeonhole bootstrap) has two errors: the means of S drawn seeds vary (S−1)/S times
    as much as they should, and the interaction of seed and prompt counts three times. So the resampled deviations are scaled to the
    unbiased variance of the two-way layout, ``Var = R + C − E`` (at least R and at least C). R is the variance of the seeds' means
    ÷ S, C the variance of the prompts' means ÷ P, and E the residual mean square ÷ SP. Each deviation is then multiplied by
    ``√(ν/χ²_ν)``, with Satterthwaite's ν, which turns a normal deviation into Student's t.

    Args:
        a: training seed → prompt id → value of the first method.
        b: the same of the second method.
        resamples: number of resamples.
        seed: seed of the resampling.
        coverage: coverage of the interval.
        calibrated: scale the deviations as above, which corrects for few seeds.

    Raises:
        DataError: a method has no seed, the methods share no prompt, or there is only one seed and one prompt.

    Source: Owen 2007, "The pigeonhole bootstrap"; Satterthwaite 1946 for ν.
    """
    if not a or not b:
        raise DataError(f"A comparison needs scores of at least one training seed of each method, got {len(a)} and {len(b)}.")
    runs = [*a.values(), *b.values()]
    prompts = shared_prompts(runs)
    if not prompts:
        raise DataError(f"No prompt has a value in all {len(a) + len(b)} runs: compare runs that were measured on the same prompts.")
    paired = set(a) == set(b)
    groups = _groups(a, b, prompts, paired)
    if len(prompts) == 1 and all(len(g) == 1 for g in groups):
        raise DataError("One training seed and one prompt say nothing of the spread: measure more of either.")
    difference = float(sum(g.mean() for g in groups))
    deviations = resampled_means(groups, resamples, seed) - difference
    if calibrated:
        deviations = _calibrate(deviations, groups, seed)
    low, high = difference + np.quantile(deviations, [(1.0 - coverage) / 2.0, (1.0 + coverage) / 2.0])
    p = _two_sided(difference + deviations)
    return Bootstrapped(difference, float(low), float(high), p, (len(a), len(b)), len(prompts), len(set().union(*runs)) - len(prompts), paired)


def shared_prompts(runs: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the sorted prompts that have a value in every run. NaN is no value."""
    defined = [{prompt for prompt, value in run.items() if not math.isnan(value)} for run in runs]
    return sorted(set.intersection(*defined)) if defined else []


def value_table(scores: ScoresBySeed, prompts: Sequence[str]) -> np.ndarray:
    """Return the values as an array [seeds, prompts]."""
    return np.array([[run[p] for p in prompts] for run in scores.values()], dtype=np.float64).reshape(len(scores), len(prompts))


def _groups(a: ScoresBySeed, b: ScoresBySeed, prompts: Sequence[str], paired: bool) -> list[np.ndarray]:
    """Return arrays [seeds, prompts] whose means add up to the difference: a − b if the seeds are paired, else a and −b."""
    if paired:
        return [value_table(a, prompts) - value_table({seed: b[seed] for seed in a}, prompts)]
    return [value_table(a, prompts), -value_table(b, prompts)]


def resampled_means(groups: Sequence[np.ndarray], resamples: int, seed: int, chunk_entries: int = CHUNK_ENTRIES) -> np.ndarray:
    """Return [resamples] resampled sums over the groups' means. Seeds are drawn for each group, prompts once for all groups.

    Prompts and the seeds of each group are drawn from separate generators, so that the size of a chunk changes no number.

    Args:
        groups: arrays [seeds, prompts].
        resamples: number of resamples.
        seed: seed of the generators.
        chunk_entries: entries of the largest array in memory.
    """
    prompts = groups[0].shape[1]
    prompt_rng, *seed_rngs = np.random.default_rng(seed).spawn(1 + len(groups))
    chunk = max(1, chunk_entries // max(g.size for g in groups))
    means = []
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        drawn = prompt_rng.integers(prompts, size=(n, prompts))
        total = np.zeros(n)
        for group, rng in zip(groups, seed_rngs, strict=True):
            of_prompts = group[rng.integers(len(group), size=(n, len(group)))].mean(1)
            total += np.take_along_axis(of_prompts, drawn, 1).mean(1)
        means.append(total)
    return np.concatenate(means)


def _calibrate(deviations: np.ndarray, groups: Sequence[np.ndarray], seed: int) -> np.ndarray:
    variance, freedom = variance_of_difference(groups)
    drawn = float(deviations.var())
    if variance == 0.0 or drawn == 0.0:
        return deviations
    chi2 = np.random.default_rng(seed).spawn(len(groups) + 2)[-1].chisquare(freedom, len(deviations))
    return deviations * np.sqrt(variance / drawn * freedom / chi2)


def variance_of_difference(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the unbiased variance of the sum of the groups' means, and its degrees of freedom. Seeds and prompts both count as random."""
    prompts = groups[0].shape[1]
    rows, residuals, columns = [], [], []  # (variance, degrees of freedom)
    for g in groups:
        seeds = len(g)
        if seeds > 1:
            rows.append((g.mean(1).var(ddof=1) / seeds, seeds - 1))
        if seeds > 1 and prompts > 1:
            rest = g - g.mean(1, keepdims=True) - g.mean(0) + g.mean()
            freedom = (seeds - 1) * (prompts - 1)
            residuals.append((np.square(rest).sum() / freedom / g.size, freedom))
    if prompts > 1:
        columns.append((np.sum([g.mean(0) for g in groups], axis=0).var(ddof=1) / prompts, prompts - 1))
    r, c, e = (float(sum(v for v, _ in part)) for part in (rows, columns, residuals))
    variance = max(r + c - e, r, c)
    if variance == 0.0:
        return 0.0, 1.0
    return variance, max(1.0, 1.0 / sum((v / variance) ** 2 / f for v, f in (*rows, *columns, *residuals)))


def _two_sided(means: np.ndarray) -> float:
    """Return a two-sided p-value: twice the smaller share of the resampled differences on one side of 0. The observed one counts on both."""
    beyond = min(int((means <= 0.0).sum()), int((means >= 0.0).sum()))
    return min(1.0, 2.0 * (1 + beyond) / (1 + len(means)))
