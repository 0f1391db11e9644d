"""Show the scores of tasks as a table."""

from collections.abc import Sequence
from typing import Any

from tdistill.pages.tables import ARROWS, Cell, Table, format_estimate, right_aligned
from tdistill.statistics.pooling import pooled

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


def tasks_table(records: Sequence[dict[str, Any]]) -> Table:
    """Build a table with one line for each task and method, pooled over seeds, and the metrics that any of them has."""
    metrics = [m for m in TASK_METRICS if any(m in record["scores"] for record in records)]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record["method"]), []).append(record)
    lines = [
        [
            Cell(task),
            Cell(method),
            Cell(str(group[0]["prompts"])),
            *(Cell(format_estimate(pooled({r["seed"]: r["scores"].get(m, {}) for r in group}))) for m in metrics),
        ]
        for (task, method), group in groups.items()
    ]
    header = ["task", "system", "prompts", *(TASK_METRICS[m][0] + ARROWS[TASK_METRICS[m][1]] for m in metrics)]
    caption = "Mean over seeds and prompts ± standard error; each prompt's value is the mean of its answers."
    return Table(caption, header, lines, right_aligned(len(header), left=2))
