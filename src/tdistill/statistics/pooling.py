"""Pool scores over several training seeds and the same prompts: a mean, or a difference of two, with its uncertainty.

Seeds and prompts both count as random samples.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from tdistill.statistics.bootstrap import ScoresBySeed, hierarchical_bootstrap, shared_prompts, value_table, variance_of_difference
from tdistill.statistics.estimate import Estimate


@dataclass(frozen=True)
class Compared:
    """Hold the difference of two methods' means, a − b, and its uncertainty; NaN where there is none."""

    difference: Estimate  # n: prompts
    low: float  # of the 95 % interval
    high: float
    p_value: float  # two-sided
    seeds: tuple[int, int]  # number of training seeds of a and of b
    paired: bool  # by the seeds that both have, which alone count; False: they have none in common, and all count


def pooled(values: ScoresBySeed) -> Estimate:
    """Return the mean over seeds and over the prompts on which all have a value, with its standard error over both."""
    x = value_table(values, shared_prompts(values.values()))
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
    prompts = shared_prompts([*a.values(), *b.values()])
    if not prompts or not a or not b:
        return None
    one, other = value_table(a, prompts), value_table({seed: b[seed] for seed in (both or b)}, prompts)
    difference = Estimate(float(one.mean() - other.mean()), _stderr([one - other] if both else [one, -other]), len(prompts))
    if not (math.isfinite(difference.mean) and math.isfinite(difference.stderr)):
        return Compared(difference, math.nan, math.nan, math.nan, (len(a), len(b)), bool(both))
    found = hierarchical_bootstrap(a, b)
    return Compared(replace(difference, mean=found.difference), found.low, found.high, found.p_value, found.seeds, bool(both))


def _stderr(groups: list[np.ndarray]) -> float:
    """Return the standard error of the mean; NaN if there is only one seed and one prompt."""
    return math.sqrt(variance_of_difference(groups)[0]) if max(map(len, groups)) > 1 or groups[0].shape[1] > 1 else math.nan
