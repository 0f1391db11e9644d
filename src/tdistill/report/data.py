"""Hold everything that a report shows as plain values: no directory and no model is needed to render it."""

from dataclasses import dataclass, field

from tdistill.pages.parts import Sample
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared


@dataclass(frozen=True)
class SystemResult:
    """Describe one evaluated model: the teacher, the pruned start, an SFT student, a student that was distilled with several seeds."""

    name: str  # e.g. "teacher", "pruned", "sft", "sft_continued", "distilled"
    description: str  # one line: the objective, steps and learning rate, or what it is
    parameters: int
    num_hidden_layers: int
    metrics: dict[str, Estimate]  # keys of METRICS, in any subset; over the training seeds and prompts
    seeds: tuple[int, ...] = ()  # training seeds pooled in it; none for what no train stage made


@dataclass(frozen=True)
class Difference:
    """Hold the difference a − b of two systems' means of one metric, paired by prompt and by the training seeds that both have."""

    a: str
    b: str
    metric: str
    value: Compared


@dataclass(frozen=True)
class TrainingCurve:
    """Hold what the trainer logged for one student: a list of records, each with ``step`` and some of the metrics."""

    name: str  # the system's
    records: list[dict[str, float]]
    seed: int | None = None  # the training seed, where a system has several


@dataclass(frozen=True)
class Sparsity:
    """Describe how concentrated the teacher is, measured on ``n_tokens`` states of held-out teacher text over the whole vocabulary."""

    n_tokens: int
    vocab_size: int
    top_k_mass: dict[int, float]  # k → mean mass of the k most probable tokens
    sizes: dict[float, list[int]]  # p → |A_p| of every state


@dataclass(frozen=True)
class StageCost:
    """Hold the time, size and memory of one stage of the run."""

    name: str
    seconds: float
    size_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class ReportData:
    """Hold the whole report."""

    title: str
    facts: dict[str, str]  # label → value: teacher, student, p, seed, versions, git commit, machine …
    protocol: str  # how the numbers in the table were obtained, one paragraph
    systems: list[SystemResult]
    differences: list[Difference]
    curves: list[TrainingCurve]
    sparsity: Sparsity | None
    stages: list[StageCost]
    samples: list[Sample]  # of the first training seed
    recipe_yaml: str
    notes: list[str] = field(default_factory=list)  # limits and warnings to show under the table
