"""Pool several seeds on the same prompts into one number with its uncertainty. Seeds and prompts both count as random samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tdistill.statistics.bootstrap import ScoresBySeed, hierarchical_bootstrap, variance_of_difference
from tdistill.statistics.estimate import Estimate


@dataclass(frozen=True)
class Compared:
    """Hold the difference of two methods' means, a − b, and its uncertainty; NaN where there is none."""

    difference: Estimate  # n: prompts
    low: float  # of the 95 % interval
    high: float
    p_value: float  # two-sided
    seeds: tuple[int, int]  # of a and of b
    paired: bool  # over the seeds that both have; otherwise they have none in common, and all count


def pooled(values: ScoresBySeed) -> Estimate:
    """Return the mean over seeds and over the prompts on which all have a value, with its standard error over both."""
    x = _table(values, _shared(values))
    if x.size == 0:
        return Estimate(math.nan, math.nan, 0)
    return Estimate(float(x.mean()), _stderr([x]), x.shape[1])


def compared(a: ScoresBySeed, b: ScoresBySeed) -> Compared | None:
    """Estimate a − b by ``hierarchical_bootstrap``; None if no prompt has a value in all seeds of both.

    Students of one seed have the order of their data and the teacher's text in common, so seeds are paired where both have them. The interval
    and the p-value are NaN where the values have no finite spread, as with one seed and one prompt.
    """
    both = [seed for seed in a if seed in b]
    if both:
        a, b = ({seed: of[seed] for seed in both} for of in (a, b))
    prompts = _shared({**{(0, s): v for s, v in a.items()}, **{(1, s): v for s, v in b.items()}})
    if not prompts or not a or not b:
        return None
    one, other = _table(a, prompts), _table(b, prompts)
    difference = Estimate(float(one.mean() - other.mean()), _stderr([one - other] if both else [one, -other]), len(prompts))
    if not (math.isfinite(difference.mean) and math.isfinite(difference.stderr)):
        return Compared(difference, math.nan, math.nan, math.nan, (len(a), len(b)), bool(both))
    found = hierarchical_bootstrap(a, b)
    return Compared(replace(difference, mean=found.difference), found.low, found.high, found.p_value, found.seeds, bool(both))


def _stderr(groups: list[np.ndarray]) -> float:
    """Return the standard error of the mean; NaN if there is only one seed and one prompt."""
    return math.sqrt(variance_of_difference(groups)[0]) if max(map(len, groups)) > 1 or groups[0].shape[1] > 1 else math.nan


def _shared(values: Mapping) -> list[str]:
    defined = [{prompt for prompt, value in row.items() if not math.isnan(value)} for row in values.values()]
    return sorted(set.intersection(*defined)) if defined else []


def _table(values: ScoresBySeed, prompts: list[str]) -> np.ndarray:
    """Return the values as an array [seeds, prompts]."""
    return np.array([[row[p] for p in prompts] for row in values.values()], dtype=np.float64).reshape(len(values), len(prompts))
