"""Read the quality of a method where its texts have a given entropy, so that methods can be compared at equal entropy.

At one temperature a sharper student writes likelier text, and a lower temperature makes any student sharper. So each method is decoded at
several temperatures T, and methods are compared where their texts have the same mean entropy L. Take the two neighbouring temperatures whose
mean entropies v enclose L, and read every metric x on the line between them:

    x(L) = Σ_T w_T·x_T    with    Σ_T w_T = 1,  Σ_T w_T·v_T = L.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

ENTROPY = "entropy"
SLACK = 0.05  # a level this far beyond the ends, as a share of the distance of two temperatures, still counts as reached

TemperatureCurve = Mapping[float, Mapping[Hashable, Mapping[str, Mapping[str, float]]]]  # temperature → training seed → metric → prompt → value


def temperature_curve(seeds: Mapping[Hashable, Mapping[float, Mapping[str, Mapping[str, float]]]]) -> TemperatureCurve:
    """Turn training seed → temperature → scores around; keep the temperatures, ascending, at which all seeds were measured."""
    shared = set.intersection(*(set(own) for own in seeds.values())) if seeds else set()
    return {t: {seed: own[t] for seed, own in seeds.items()} for t in sorted(shared)}


@dataclass(frozen=True)
class AtLevel:
    """Hold one metric of a method, read where the method's texts have a given entropy."""

    temperature: float  # at which the method's texts have this entropy, interpolated
    values: dict[Hashable, dict[str, float]]  # training seed → prompt → value of the metric


def at_level(curve: TemperatureCurve, metric: str, level: float) -> AtLevel | None:
    """Read a metric of one method where the mean entropy is ``level``; None if the measured temperatures do not reach it.

    A value is y = Σ_T w_T·x_T − s·(Σ_T w_T·v_T − L) with s the slope of x over v between the two temperatures. The mean of y over seeds
    and prompts is x(L), and its spread is that of x(L) to first order, the weights' own uncertainty included (the delta method): so
    bootstraps and standard errors of means take y as they take any score.

    Args:
        curve: the seeds that have all temperatures, and the prompts on which all of them have both metrics.
        metric: the metric to read.
        level: the mean entropy, in nats per token.
    """
    for low, high in pairwise(sorted(curve)):
        found = _between(curve, low, high, metric, level)
        if found is not None:
            return found
    return None


def mean_of(curve: TemperatureCurve, temperature: float, metric: str) -> float:
    """Return the mean of a metric over seeds and over the prompts on which all seeds have a value."""
    seeds = list(curve[temperature].values())
    prompts = set.intersection(*(_defined(scores, metric) for scores in seeds))
    return float(np.mean([[scores[metric][p] for p in sorted(prompts)] for scores in seeds]))


def _between(curve: TemperatureCurve, low: float, high: float, metric: str, level: float) -> AtLevel | None:
    seeds = [s for s in curve[low] if all(s in own for own in curve.values())]
    defined = [_defined(curve[t][s], m) for t in (low, high) for s in seeds for m in (metric, ENTROPY)]
    prompts = sorted(set.intersection(*defined)) if defined else []
    if not prompts:
        return None
    x, v = (np.array([[[curve[t][s][m][p] for p in prompts] for s in seeds] for t in (low, high)]) for m in (metric, ENTROPY))
    x_mean, v_mean = x.mean((1, 2)), v.mean((1, 2))
    if v_mean[0] == v_mean[1]:
        return None
    w = (level - v_mean[0]) / (v_mean[1] - v_mean[0])
    if not -SLACK <= w <= 1 + SLACK:
        return None
    slope = (x_mean[1] - x_mean[0]) / (v_mean[1] - v_mean[0])
    y = (1 - w) * x[0] + w * x[1] - slope * ((1 - w) * v[0] + w * v[1] - level)
    values = {s: dict(zip(prompts, map(float, row), strict=True)) for s, row in zip(seeds, y, strict=True)}
    return AtLevel(float((1 - w) * low + w * high), values)


def _defined(scores: Mapping[str, Mapping[str, float]], metric: str) -> set[str]:
    return {p for p, value in scores.get(metric, {}).items() if np.isfinite(value)}
