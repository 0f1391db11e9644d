"""Define ``ReportData``: everything a report shows, as plain values, so that rendering knows nothing of directories or models."""

from dataclasses import dataclass, field

from tdistill.pages.parts import Sample
from tdistill.statistics.estimate import Estimate


@dataclass(frozen=True)
class System:
    """Describe one evaluated model: the teacher, the pruned start, an SFT student, a distilled student."""

    name: str  # e.g. "teacher", "pruned", "sft", "sft_continued", "distilled"
    description: str  # one line: the objective, steps and learning rate, or what it is
    parameters: int
    num_hidden_layers: int
    metrics: dict[str, Estimate]  # keys of METRICS, in any subset
    seeds: tuple[int, ...] = ()  # training seeds that are pooled in it; none for teacher, start and SFT student


@dataclass(frozen=True)
class Comparison:
    """Hold the paired difference a − b of one metric over the same prompts."""

    a: str
    b: str
    metric: str
    difference: Estimate


@dataclass(frozen=True)
class Curve:
    """Hold what the trainer logged for one run: a list of records, each with ``step`` and some of the metrics."""

    name: str
    records: list[dict[str, float]]
    seed: int | None = None


@dataclass(frozen=True)
class Sparsity:
    """Describe how concentrated the teacher is, measured on ``n_tokens`` states of held-out teacher text over the whole vocabulary."""

    n_tokens: int
    vocab_size: int
    top_k_mass: dict[int, float]  # k → mean mass of the k most probable tokens
    sizes: dict[float, list[int]]  # p → |A_p| of every state


@dataclass(frozen=True)
class Stage:
    """Hold the time, size and memory of one stage of the run."""

    name: str
    seconds: float
    size_bytes: int
    peak_memory_bytes: int
    notes: str = ""


@dataclass(frozen=True)
class ReportData:
    """Hold the whole report."""

    title: str
    facts: dict[str, str]  # label → value: teacher, student, p, seed, versions, git commit, machine …
    protocol: str  # how the numbers in the table were obtained, one paragraph
    systems: list[System]
    comparisons: list[Comparison]
    curves: list[Curve]
    sparsity: Sparsity | None
    stages: list[Stage]
    samples: list[Sample]
    recipe_yaml: str
    notes: list[str] = field(default_factory=list)  # limits and warnings to show under the table
