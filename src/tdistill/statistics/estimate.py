"""Estimate a mean with its standard error, and a paired difference of two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over ``n`` samples with its standard error (NaN if it has none)."""

    mean: float
    stderr: float
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and standard error over prompts. NaN entries (undefined for a prompt) are left out.

    Examples:
        >>> estimate([1.0, 3.0, math.nan])
        Estimate(mean=2.0, stderr=1.0, n=2)
    """
    x = np.asarray([v for v in values if not math.isnan(v)], dtype=np.float64)
    if len(x) == 0:
        return Estimate(math.nan, math.nan, 0)
    stderr = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return Estimate(float(x.mean()), stderr, len(x))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Estimate the mean of a − b over the prompts where both are defined. Both lists are in the same order of prompts.

    Examples:
        >>> paired_difference([3.0, 7.0], [2.0, 4.0])
        Estimate(mean=2.0, stderr=1.0, n=2)
    """
    return estimate([x - y for x, y in zip(a, b, strict=True)])
