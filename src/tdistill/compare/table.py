"""Build the tables of a comparison."""

import math
from collections.abc import Mapping, Sequence

from tdistill.compare.data import METRICS, PooledMethod
from tdistill.pages.tables import MISSING, Cell, Table, format_count, format_estimate, format_number, format_seconds, right_aligned
from tdistill.report.data import Difference
from tdistill.report.tables import VERDICT, best_of, format_p, title, verdict
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared

Quality = Mapping[str, Mapping[str, Estimate]]  # method's label → metric → value


def methods_table(methods: Sequence[PooledMethod], quality: Quality) -> Table:
    """Build the table of all methods, with their quality and cost."""
    best = {metric: best_of({m.label: quality[m.label][metric].mean for m in methods}, metric) for metric in METRICS}
    rows = [
        [
            Cell(m.label),
            Cell(str(len(m.seeds))),
            *(Cell(format_estimate(quality[m.label][k]), strong=m.label in best[k]) for k in METRICS),
            *(Cell(_cost(m, key)) for key in ("seconds", "tokens", "steps")),
        ]
        for m in methods
    ]
    header = ["method", "seeds", *map(title, METRICS), "time", "tokens", "steps"]
    caption = (
        "Mean over seeds and prompts ± standard error. ↑: higher is better; ↓: lower is better; bold is the best student. Time, response "
        "tokens and optimizer steps of training: “A of B” is A up to the checkpoint that was saved, B in total; one number if it is the last."
    )
    return Table(caption, header, rows, right_aligned(len(header)), terminal=True)


def _cost(method: PooledMethod, key: str) -> str:
    best, total = (_shown(key, method.cost(which, key)) for which in ("best", "total"))
    until_the_end = all(s.best.steps == s.total.steps for s in method.students)
    return total if until_the_end or MISSING in (best, total) else f"{best} of {total}"


def _shown(key: str, value: float) -> str:
    if not math.isfinite(value):
        return MISSING
    return format_seconds(value) if key == "seconds" else format_count(round(value))


def differences_table(differences: Sequence[Difference], baseline: str) -> Table:
    """Build the table of every method's differences from the baseline."""
    rows = [
        [
            Cell(d.a),
            Cell(title(d.metric)),
            Cell(format_estimate(d.value.difference, signed=True)),
            Cell(_interval(d.value)),
            Cell(format_p(d.value.p_value)),
            Cell(_size(d.value)),
            verdict(d),
        ]
        for d in differences
    ]
    caption = f"Differences to {baseline}, paired by seed and prompt, ± standard error; the interval covers 95 %. n: seeds × prompts. {VERDICT}"
    header = ["method", "metric", "difference", "95 % interval", "p", "n", "verdict"]
    return Table(caption, header, rows, ["left", "left", "right", "right", "right", "right", "left"], labels=2)


def _interval(value: Compared) -> str:
    """Format the interval with the decimals that show two digits of its half-width."""
    if not math.isfinite(value.p_value):
        return MISSING
    half = (value.high - value.low) / 2
    decimals = max(1 - math.floor(math.log10(half)), 0) if half > 0 else None
    return " to ".join(format_number(v, decimals) for v in (value.low, value.high))


def _size(value: Compared) -> str:
    seeds = str(value.seeds[0]) if value.paired else f"{value.seeds[0]} and {value.seeds[1]} others"
    return f"{seeds} × {value.difference.n}"
