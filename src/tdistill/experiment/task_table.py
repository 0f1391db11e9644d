"""Show the rows of tasks as a table."""

import math
from collections.abc import Sequence
from typing import Any

from tdistill.pages.tables import ARROWS, Align, Cell, Table, format_estimate
from tdistill.statistics.estimate import Estimate

# metric → (title, which direction is better)
TASK_METRICS: dict[str, tuple[str, str]] = {
    "rouge_l": ("ROUGE-L", "higher"),
    "exact_match": ("exact match", "higher"),
    "number_match": ("last number", "higher"),
    "teacher_nll": ("teacher NLL", "lower"),
    "entropy": ("entropy", ""),
    "distinct_2": ("distinct-2", ""),
    "mean_length": ("length", ""),
    "finished": ("finished", ""),
}


def tasks_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Build a table with one line for each system × task, and the metrics that any of them has."""
    metrics = [m for m in TASK_METRICS if any(m in row["metrics"] for row in rows)]
    header = ["task", "system", "prompts", *(TASK_METRICS[m][0] + ARROWS[TASK_METRICS[m][1]] for m in metrics)]
    lines = [
        [Cell(r["task"]), Cell(r["system"]), Cell(str(r["prompts"])), *(Cell(_format(r["metrics"].get(m))) for m in metrics)] for r in rows
    ]
    align: list[Align] = ["right"] * len(header)
    align[:2] = ["left", "left"]
    return Table("Mean over prompts ± standard error; each prompt's value is the mean of its answers.", header, lines, align)


def _format(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return format_estimate(None)
    return format_estimate(Estimate(metric["mean"], math.nan if metric["stderr"] is None else metric["stderr"], metric["n"]))
