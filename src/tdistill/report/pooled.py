"""Pool the scores of systems over training seeds and prompts: means, and differences between two systems."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tdistill.evaluation.metrics import METRICS
from tdistill.report.data import Difference, SystemResult
from tdistill.statistics.bootstrap import ScoresBySeed
from tdistill.statistics.pooling import compared, pooled


@dataclass(frozen=True)
class MeasuredSystem:
    """Hold a system with all its scores."""

    name: str
    description: str
    parameters: int
    num_hidden_layers: int
    scores: Mapping[int | None, Mapping[str, Mapping[str, float]]]  # training seed (None: has none) → metric → prompt → value

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the training seeds."""
        return tuple(seed for seed in self.scores if seed is not None)

    def by_seed(self, metric: str) -> ScoresBySeed:
        """Return one metric as training seed → prompt → value, of the seeds that have it."""
        return {seed: scores[metric] for seed, scores in self.scores.items() if scores.get(metric)}


def pooled_system(measured: MeasuredSystem) -> SystemResult:
    """Return the system with every metric as mean ± standard error over training seeds and prompts."""
    found = {metric: pooled(measured.by_seed(metric)) for metric in METRICS if measured.by_seed(metric)}
    return SystemResult(measured.name, measured.description, measured.parameters, measured.num_hidden_layers, found, measured.seeds)


def differences(a: MeasuredSystem, others: Sequence[MeasuredSystem]) -> Iterator[Difference]:
    """Yield the difference of ``a`` to every other system, in every metric that both have."""
    for b in others:
        for metric in METRICS:
            value = compared(a.by_seed(metric), b.by_seed(metric))
            if value is not None:
                yield Difference(a.name, b.name, metric, value)
