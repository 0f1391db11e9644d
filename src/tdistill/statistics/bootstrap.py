"""Compare two methods by a bootstrap of the difference of their means, over training seeds and over prompts at once."""

from collections.abc import Hashable, Mapping, Sequence
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
    """Hold the difference of means a − b with its interval and two-sided p-value: p < 1 − coverage if 0 lies outside (up to one resample)."""

    difference: float
    low: float
    high: float
    p_value: float
    seeds: tuple[int, int]  # training seeds of a and of b; a method with one counts as fixed
    prompts: int
    left_out: int  # prompts that a seed of either method lacks
    paired_seeds: bool


def hierarchical_bootstrap(
    a: ScoresBySeed, b: ScoresBySeed, *, resamples: int = RESAMPLES, seed: int = 0, coverage: float = COVERAGE, calibrated: bool = True
) -> Bootstrapped:
    """Compare two methods that were trained with several seeds and measured on the same prompts.

    Every resample draws training seeds and, independently, prompts, with replacement. Every seed saw the same prompts, so a drawn
    prompt counts for all drawn seeds, and for both methods. If both have the same seeds, these are paired too; otherwise each
    method's are drawn on their own.

    That alone (``calibrated=False``, the pigeonhole bootstrap) errs both ways: S drawn seeds vary (S−1)/S as much as they should,
    and what is peculiar to one seed on one prompt is counted three times. So the resampled deviations are scaled to the unbiased
    variance of the two-way layout, ``Var = R + C − E``, with R the variance of the seeds' means ÷ S, C that of the prompts' means
    ÷ P, E the residual mean square ÷ SP (never below R or C), and each is multiplied by ``√(ν/χ²_ν)``, which makes Student's t of
    a normal deviation; ν is Satterthwaite's.

    Args:
        a: training seed → prompt id → value of the first method.
        b: the second method's.
        resamples: how many.
        seed: seed of the resampling.
        coverage: coverage of the interval.
        calibrated: correct for few seeds, as said above.

    Raises:
        DataError: a method has no seed, no prompt is shared, or there is one seed and one prompt only.

    Source: Owen 2007, "The pigeonhole bootstrap"; Satterthwaite 1946 for ν.
    """
    if not a or not b:
        raise DataError(f"A comparison needs scores of at least one training seed of each method, got {len(a)} and {len(b)}.")
    prompts, left_out = _shared_prompts([*a.values(), *b.values()])
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
    return Bootstrapped(difference, float(low), float(high), p, (len(a), len(b)), len(prompts), left_out, paired)


def _shared_prompts(runs: Sequence[Mapping[str, float]]) -> tuple[list[str], int]:
    """Return the sorted prompts that have a value in every run, and how many others there are. NaN is no value."""
    defined = [{k for k, v in run.items() if not np.isnan(v)} for run in runs]
    shared = set.intersection(*defined)
    return sorted(shared), len(set.union(*map(set, runs)) - shared)


def _groups(a: ScoresBySeed, b: ScoresBySeed, prompts: Sequence[str], paired: bool) -> list[np.ndarray]:
    """Return arrays [seeds, prompts] whose means add up to the difference: one array if seeds are paired, else a and −b."""

    def table(scores: ScoresBySeed, seeds: Sequence[Hashable]) -> np.ndarray:
        return np.array([[scores[s][p] for p in prompts] for s in seeds], dtype=np.float64)

    if paired:
        seeds = list(a)
        return [table(a, seeds) - table(b, seeds)]
    return [table(a, list(a)), -table(b, list(b))]


def resampled_means(groups: Sequence[np.ndarray], resamples: int, seed: int, chunk_entries: int = CHUNK_ENTRIES) -> np.ndarray:
    """Return [resamples] sums over groups of the mean of [seeds, prompts]; seeds are drawn for each group, prompts once for all groups.

    The draws of prompts and of each group's seeds come from generators of their own, so that chunks change nothing.
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
    """Return the unbiased variance of the sum of the groups' means, with training seeds and prompts both random, and its degrees of freedom."""
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
    """Return a two-sided p-value: twice the smaller share of resampled differences on either side of 0, the observed one counted in both."""
    beyond = min(int((means <= 0.0).sum()), int((means >= 0.0).sum()))
    return min(1.0, 2.0 * (1 + beyond) / (1 + len(means)))
