"""Build the tables of a report: quality, differences, sparsity and stages."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tdistill.evaluation.metrics import METRICS, TEACHER
from tdistill.pages.tables import MISSING, Cell, Table, format_bytes, format_count, format_estimate, format_seconds, heading, right_aligned
from tdistill.report.data import Difference, Sparsity, StageCost, SystemResult

SIGNIFICANT = 0.05
LEAST_P = 0.001  # smaller ones are shown as smaller than this


def metrics_of(systems: Sequence[SystemResult]) -> list[str]:
    """Return the metrics that at least one system has, in the order of ``METRICS``."""
    present = {name for system in systems for name, value in system.metrics.items() if math.isfinite(value.mean)}
    return [name for name in METRICS if name in present]


def title(metric: str) -> str:
    """Return a metric's column title, with ↑ or ↓ for the direction that is better."""
    return heading(METRICS[metric][0], METRICS[metric][2]) if metric in METRICS else metric


def best_of(means: Mapping[str, float], metric: str) -> set[str]:
    """Return the names of the students whose mean is best; none if the metric has no better direction or fewer than two have a mean.

    The teacher is left out: it is what students are measured against.
    """
    direction = METRICS[metric][2]
    own = {name: mean for name, mean in means.items() if name != TEACHER and math.isfinite(mean)}
    if not direction or len(own) < 2:
        return set()
    best = (min if direction == "lower" else max)(own.values())
    return {name for name, mean in own.items() if mean == best}


def quality_table(systems: Sequence[SystemResult]) -> Table:
    """Build the table of every system with every metric; the best student of a column is strong."""
    metrics = metrics_of(systems)
    best = {metric: best_of({s.name: s.metrics[metric].mean for s in systems if metric in s.metrics}, metric) for metric in metrics}
    shows_seeds = has_several_seeds(systems)
    rows = [
        [Cell(s.name), *([Cell(str(len(s.seeds) or MISSING))] if shows_seeds else [])]
        + [Cell(format_count(s.parameters)), Cell(str(s.num_hidden_layers))]
        + [Cell(format_estimate(s.metrics.get(m)), strong=s.name in best[m]) for m in metrics]
        for s in systems
    ]
    header = ["system", *(["seeds"] if shows_seeds else []), "parameters", "layers", *map(title, metrics)]
    over = "training seeds and prompts" if shows_seeds else "prompts"
    caption = f"Quality of every system: mean over {over} ± standard error. ↑: higher is better; ↓: lower is better."
    if any(best.values()):
        caption += " Bold is the best student of a column."
    return Table(caption, header, rows, right_aligned(len(header)), terminal=True)


def has_several_seeds(systems: Sequence[SystemResult]) -> bool:
    """Tell whether a system is pooled over more than one training seed."""
    return any(len(s.seeds) > 1 for s in systems)


def format_p(p: float) -> str:
    """Format a p-value; a small one as less than the smallest that is shown."""
    if not math.isfinite(p):
        return MISSING
    return f"< {LEAST_P:g}" if p < LEAST_P else f"{p:.3f}"


def verdict(difference: Difference) -> Cell:
    """Return what the p-value says about ``a`` against ``b``: better or worse; higher or lower if neither direction is better."""
    value = difference.value
    if not all(map(math.isfinite, (value.difference.mean, value.difference.stderr, value.p_value))):
        return Cell(MISSING)
    if value.p_value >= SIGNIFICANT:
        return Cell("no difference")
    side = "higher" if value.difference.mean > 0 else "lower"
    direction = METRICS[difference.metric][2] if difference.metric in METRICS else ""
    if not direction:
        return Cell(side)
    return Cell("better", tone="good") if side == direction else Cell("worse", tone="bad")


VERDICT = (
    f"A verdict is given below p = {SIGNIFICANT:g} (bootstrap); “no difference” means that none was resolved, and about one true tie in "
    "twenty gets a verdict."
)


def comparison_table(differences: Sequence[Difference]) -> Table:
    """Build the table of paired differences with their verdicts; with several training seeds it has p-values and counts the seeds too."""
    several = any(max(d.value.seeds) > 1 for d in differences)
    rows = [
        [
            Cell(f"{d.a} − {d.b}"),
            Cell(title(d.metric)),
            Cell(format_estimate(d.value.difference, signed=True)),
            *([Cell(format_p(d.value.p_value))] if several else []),
            Cell(f"{max(d.value.seeds)} × {d.value.difference.n}" if several else str(d.value.difference.n)),
            verdict(d),
        ]
        for d in differences
    ]
    paired = "over the same training seeds and prompts" if several else "over the same prompts"
    counts = " n: seeds × prompts." if several else ""
    caption = f"Paired differences a − b {paired}, ± standard error.{counts} The verdict is on a. {VERDICT}"
    header = ["a − b", "metric", "difference", *(["p", "n"] if several else ["prompts"]), "verdict"]
    return Table(caption, header, rows, [*right_aligned(len(header) - 1, left=2), "left"], terminal=True, labels=2)


def sparsity_table(sparsity: Sparsity) -> Table:
    """Build the table of the quantiles of |A_p| for each p; every quantile is a size that occurs."""
    rows = []
    for p, sizes in sorted((p, np.asarray(s)) for p, s in sparsity.sizes.items() if len(s)):
        quantiles = np.quantile(sizes, [0.5, 0.9, 0.99, 1.0], method="inverted_cdf")
        rows.append([Cell(f"{p:g}"), Cell(f"{sizes.mean():,.1f}"), *(Cell(f"{int(q):,}") for q in quantiles)])
    caption = (
        f"Number of candidates |A_p|: the fewest tokens, of {sparsity.vocab_size:,}, that hold the share p of the teacher's probability. Mean, "
        f"quantiles (p90, p99: 90 % and 99 % of the states have at most this number) and maximum over {sparsity.n_tokens:,} states."
    )
    header = ["p", "mean", "median", "p90", "p99", "max"]
    return Table(caption, header, rows, ["right"] * 6)


def stages_table(stages: Sequence[StageCost]) -> Table:
    """Build the table of time, size on disk and peak memory of each stage, with their totals (for memory, the largest)."""
    total = StageCost(
        "total",
        sum(s.seconds for s in stages if math.isfinite(s.seconds)),
        sum(s.size_bytes for s in stages),
        max((s.peak_memory_bytes for s in stages), default=0),
    )
    rows = [
        [Cell(t) for t in (s.name, format_seconds(s.seconds), format_bytes(s.size_bytes), format_bytes(s.peak_memory_bytes))]
        for s in (*stages, total)
    ]
    rows[-1] = [Cell(cell.text, strong=True) for cell in rows[-1]]
    header = ["stage", "time", "size on disk", "peak memory"]
    caption = "Time, size on disk and peak memory of every stage; the total of peak memory is the largest one."
    return Table(caption, header, rows, right_aligned(len(header)))
