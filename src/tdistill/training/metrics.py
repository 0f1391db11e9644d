"""Per-step metrics → one number each, over the steps where they are defined."""

import torch
from torch import Tensor

from tdistill.mdp.bellman import soft_value
from tdistill.mdp.steps import Steps

# Beside the mean, these are logged under the names given: (suffix of the metric's key, name of the mean, name of the rest).
WITH_STD = "td/reward"
WITH_P99 = "candidates/count"
P99 = 0.99


class MetricSums:
    """Running sums of per-step metrics. NaN means: not defined at this step. One transfer from the device, when read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # key → [Σx, Σx², n], float64
        self._values: dict[str, list[Tensor]] = {}

    def add(self, metrics: dict[str, Tensor], mask: Tensor) -> None:
        """Add a batch of [B, T] metrics, over ``mask`` only."""
        for key, value in metrics.items():
            defined = mask & ~value.isnan()
            x = torch.where(defined, value.detach().double(), 0.0)
            sums = torch.stack([x.sum(), x.square().sum(), defined.sum().double()])
            self._sums[key] = self._sums[key] + sums if key in self._sums else sums
            if key.endswith(WITH_P99):
                self._values.setdefault(key, []).append(value[defined].float())

    def add_row(self, key: str, total: Tensor) -> None:
        """Add one number that is already a mean, such as the mean length of a batch's responses."""
        self.add({key: total.reshape(1, 1)}, torch.ones(1, 1, dtype=torch.bool, device=total.device))

    def keys(self) -> list[str]:
        """Keys seen so far, in order: the same on every process, since every process runs the same objective."""
        return list(self._sums)

    def stacked(self) -> Tensor:
        """[keys, 3] sums, to be added up over processes."""
        return torch.stack(list(self._sums.values()))

    def read(self, sums: Tensor | None = None) -> dict[str, float]:
        """Means (and the few spreads and quantiles that have names), then start anew. ``sums`` replaces this process's own."""
        if not self._sums:
            return {}
        table = (self.stacked() if sums is None else sums).cpu()
        out = {}
        for key, (total, squares, n) in zip(self._sums, table.tolist(), strict=True):
            mean = total / n if n else float("nan")
            if key.endswith(WITH_STD):
                out[f"{key}_mean"] = mean
                out[f"{key}_std"] = max(squares / n - mean**2, 0.0) ** 0.5 if n else float("nan")
            elif key.endswith(WITH_P99):
                base = key.removesuffix("count")
                out[f"{base}mean"] = mean
                out[f"{base}p99"] = torch.cat(self._values[key]).quantile(P99).item()
            else:
                out[key] = mean
        self._sums, self._values = {}, {}
        return out


def support_metrics(steps: Steps) -> dict[str, Tensor]:
    """Of the data and its p: the teacher's mass on A_p, and |A_p|, per step."""
    return {
        "teacher_mass": soft_value(steps.teacher_logp_t, steps.legal_t).exp(),
        "candidates/count": steps.legal_t.sum(-1).float(),
    }


def overlap_ratio(steps: Steps) -> Tensor:
    """Share of the teacher's k most probable tokens that are among the student's k highest on A_p, k = ⌈|A_p|/2⌉, per step.

    Both rankings are over A_p; 1 where they agree on the upper half.
    """
    half = (steps.legal_t.sum(-1, keepdim=True) + 1) // 2
    student = torch.where(steps.legal_t, steps.q_t.detach(), -torch.inf).argsort(-1, descending=True).argsort(-1) < half
    teacher = steps.teacher_logp_t.argsort(-1, descending=True).argsort(-1) < half
    both = (student & teacher & steps.legal_t).sum(-1)
    return both / half.squeeze(-1).clamp(min=1)
