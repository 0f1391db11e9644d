"""Reduce per-step metrics to one number each, over the steps where they are defined."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from tdistill.mdp.bellman import soft_value
from tdistill.mdp.steps import Steps

# Beside the mean, these are logged under the names given: (suffix of the metric's key, name of the mean, name of the rest).
WITH_STD = "td/reward"
WITH_P99 = "candidates/count"  # whole numbers ≥ 0
P99 = 0.99
# What ``diagnostics`` needs from the student. It costs a pass over the vocabulary, so that it is asked for at logged steps only.
DIAGNOSTICS = frozenset({"log_z", "entropy"})


class MetricSums:
    """Keep running sums of per-step metrics. NaN means: not defined at this step. One transfer from the device, when read.

    A metric with a quantile is whole numbers: how often each one occurred is counted, so memory is bounded by the largest of them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # key → [Σx, Σx², n], float64
        self._counts: dict[str, Tensor] = {}  # key → [largest + 1], how often each number occurred

    def add(self, metrics: dict[str, Tensor], mask: Tensor) -> None:
        """Add a batch of [B, T] metrics, over ``mask`` only."""
        for key, value in metrics.items():
            defined = mask & ~value.isnan()
            x = torch.where(defined, value.detach().double(), 0.0)
            sums = torch.stack([x.sum(), x.square().sum(), defined.sum().double()])
            self._sums[key] = self._sums[key] + sums if key in self._sums else sums
            if key.endswith(WITH_P99):
                counts = torch.bincount(value.detach()[defined].long())
                self._counts[key] = _add_counts(self._counts[key], counts) if key in self._counts else counts

    def keys(self) -> list[str]:
        """Return the keys seen so far, in order: the same on every process, since every process runs the same objective."""
        return list(self._sums)

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return means (and the few spreads and quantiles that have names), and start anew.

        Args:
            reduce: adds a tensor up over processes, padding with zeros those that are shorter along the first axis; None: one process.
        """
        if not self._sums:
            return {}
        whole = reduce or (lambda x: x)
        table = whole(torch.stack(list(self._sums.values()))).cpu()
        out = {}
        for key, (total, squares, n) in zip(self._sums, table.tolist(), strict=True):
            mean = total / n if n else math.nan
            if key.endswith(WITH_STD):
                out[f"{key}_mean"] = mean
                out[f"{key}_std"] = max(squares / n - mean**2, 0.0) ** 0.5 if n else math.nan
            elif key.endswith(WITH_P99):
                base = key.removesuffix("count")
                out[f"{base}mean"] = mean
                out[f"{base}p99"] = quantile_of_counts(whole(self._counts[key]).cpu(), P99)
            else:
                out[key] = mean
        self._sums, self._counts = {}, {}
        return out


def quantile_of_counts(counts: Tensor, q: float) -> float:
    """Return the q-quantile of whole numbers 0, 1, … that occurred ``counts`` times. It is NaN if there are none.

    The result is exact, and linear between neighbours, as that of ``torch.quantile``, which refuses more than 2²⁴ numbers.
    """
    up_to = counts.cumsum(0)
    total = int(up_to[-1]) if len(up_to) else 0
    if total == 0:
        return math.nan
    place = q * (total - 1)
    below, above = (int(torch.searchsorted(up_to, index, right=True)) for index in (math.floor(place), math.ceil(place)))
    return below + (above - below) * (place - math.floor(place))


def _add_counts(a: Tensor, b: Tensor) -> Tensor:
    width = max(len(a), len(b))
    return pad(a, (0, width - len(a))) + pad(b, (0, width - len(b)))


def support_metrics(steps: Steps) -> dict[str, Tensor]:
    """Return what depends on the data and its p alone, per step: the teacher's mass on A_p, and |A_p|."""
    return {
        "teacher_mass": soft_value(steps.teacher_logp_t, steps.legal_t).exp(),
        "candidates/count": steps.legal_t.sum(-1).float(),
    }


@torch.no_grad()
def diagnostics(steps: Steps, exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what compares the student with the teacher at each step: its mass on A_p, its entropy in nats, and ``overlap_ratio``.

    ``exact`` holds the fields that answer ``DIAGNOSTICS``.
    """
    return {
        "student_mass": student_mass(steps, exact["log_z_t"]),
        "entropy": exact["entropy_t"],
        "overlap_ratio": overlap_ratio(steps),
    }


def student_mass(steps: Steps, log_z_t: Tensor) -> Tensor:
    """Return the student's probability of A_p at each step."""
    return torch.where(steps.legal_t, (steps.q_t - log_z_t.unsqueeze(-1)).exp(), 0.0).sum(-1)


def overlap_ratio(steps: Steps) -> Tensor:
    """Return for each step the share of the teacher's k most probable tokens that are among the student's k highest on A_p, k = ⌈|A_p|/2⌉.

    Both rankings are over A_p; 1 where they agree on the upper half.
    """
    half = (steps.legal_t.sum(-1, keepdim=True) + 1) // 2
    student = torch.where(steps.legal_t, steps.q_t.detach(), -torch.inf).argsort(-1, descending=True).argsort(-1) < half
    teacher = steps.teacher_logp_t.argsort(-1, descending=True).argsort(-1) < half
    both = (student & teacher & steps.legal_t).sum(-1)
    return both / half.squeeze(-1).clamp(min=1)
