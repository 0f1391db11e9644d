"""Build the tables of a report: quality, differences, sparsity and stages."""

import math
from collections.abc import Sequence

import numpy as np

from tdistill.evaluation.metrics import METRICS, TEACHER
from tdistill.pages.tables import MISSING, Cell, Table, format_bytes, format_count, format_estimate, format_seconds, heading, right_aligned
from tdistill.report.data import Comparison, Sparsity, Stage, System


def metrics_of(systems: Sequence[System]) -> list[str]:
    """Return the metrics that at least one system has, in the order of ``METRICS``."""
    present = {name for system in systems for name, value in system.metrics.items() if math.isfinite(value.mean)}
    return [name for name in METRICS if name in present]


def best_students(systems: Sequence[System], metric: str) -> set[str]:
    """Return the names of the students whose mean is best; none if the metric has no better direction or fewer than two students have it."""
    direction = METRICS[metric][2]
    means = {s.name: s.metrics[metric].mean for s in systems if s.name != TEACHER and metric in s.metrics}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not direction or len(means) < 2:
        return set()
    best = min(means.values()) if direction == "lower" else max(means.values())
    return {name for name, mean in means.items() if mean == best}


def quality_table(systems: Sequence[System]) -> Table:
    """Build the table of every system with every metric; the best student of a column is strong."""
    metrics = metrics_of(systems)
    best = {metric: best_students(systems, metric) for metric in metrics}
    rows = [
        [Cell(s.name), Cell(format_count(s.parameters)), Cell(str(s.num_hidden_layers))]
        + [Cell(format_estimate(s.metrics.get(m)), strong=s.name in best[m]) for m in metrics]
        for s in systems
    ]
    header = ["system", "parameters", "layers", *(heading(METRICS[m][0], METRICS[m][2]) for m in metrics)]
    caption = "Quality of every system: mean ± standard error. Arrows point to better."
    if any(best.values()):
        caption += " Bold is the best student of a column."
    return Table(caption, header, rows, right_aligned(len(header)), terminal=True)


def verdict(comparison: Comparison) -> Cell:
    """Return what two standard errors say about ``a`` against ``b``; ``higher`` or ``lower`` if neither direction is better."""
    difference = comparison.difference
    if not (math.isfinite(difference.mean) and math.isfinite(difference.stderr)):
        return Cell(MISSING)
    if abs(difference.mean) <= 2 * difference.stderr:
        return Cell("no difference")
    side = "higher" if difference.mean > 0 else "lower"
    direction = METRICS[comparison.metric][2] if comparison.metric in METRICS else ""
    if not direction:
        return Cell(side)
    return Cell("better", tone="good") if side == direction else Cell("worse", tone="bad")


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Build the table of paired differences with their verdicts."""
    rows = [
        [
            Cell(f"{c.a} − {c.b}"),
            Cell(heading(METRICS[c.metric][0], METRICS[c.metric][2]) if c.metric in METRICS else c.metric),
            Cell(format_estimate(c.difference, signed=True)),
            Cell(str(c.difference.n)),
            verdict(c),
        ]
        for c in comparisons
    ]
    caption = (
        "Paired differences a − b over the same prompts, ± standard error. The verdict on a is given at two standard errors: "
        "“no difference” means that none was resolved, and about one true tie in twenty is called better or worse."
    )
    header = ["a − b", "metric", "difference", "prompts", "verdict"]
    return Table(caption, header, rows, ["left", "left", "right", "right", "left"], terminal=True)


def sparsity_table(sparsity: Sparsity) -> Table:
    """Build the table of quantiles of |A_p| for each p, each a size that occurs."""
    rows = []
    for p, sizes in sorted((p, np.asarray(s)) for p, s in sparsity.sizes.items() if len(s)):
        quantiles = np.quantile(sizes, [0.5, 0.9, 0.99, 1.0], method="inverted_cdf")
        rows.append([Cell(f"{p:g}"), Cell(f"{sizes.mean():,.1f}"), *(Cell(f"{int(q):,}") for q in quantiles)])
    caption = f"Candidates |A_p| of the teacher, over {sparsity.n_tokens:,} states and {sparsity.vocab_size:,} tokens."
    header = ["p", "mean", "median", "p90", "p99", "max"]
    return Table(caption, header, rows, ["right"] * 6)


def stages_table(stages: Sequence[Stage]) -> Table:
    """Build the table of time, size on disk and peak memory of each stage, with their totals (for memory, the largest)."""
    total = Stage(
        "total",
        sum(s.seconds for s in stages if math.isfinite(s.seconds)),
        sum(s.size_bytes for s in stages),
        max((s.peak_memory_bytes for s in stages), default=0),
    )
    rows = [
        [Cell(t) for t in (s.name, format_seconds(s.seconds), format_bytes(s.size_bytes), format_bytes(s.peak_memory_bytes))] + [Cell(s.notes)]
        for s in (*stages, total)
    ]
    rows[-1] = [Cell(cell.text, strong=True) for cell in rows[-1]]
    header = ["stage", "time", "size on disk", "peak memory", "notes"]
    caption = "What each stage took and left; the total of peak memory is the largest."
    return Table(caption, header, rows, ["left", "right", "right", "right", "left"])
