"""Show how far plans are from what runs took."""

from collections.abc import Sequence
from typing import Any

from doc_tables import MISSING, number, table

from tdistill.pages.tables import format_bytes, format_count


def plan_table(rows: Sequence[dict[str, Any]], stage: str) -> str:
    """Return planned and measured memory of one stage, recipe by recipe."""
    lines = []
    for row in (r for r in rows if r["stage"] == stage):
        memory, kept = row["memory"], row["memory"]["kept"]
        planned, measured = memory["planned"], memory["measured"]
        ratio = [number(planned / measured, 2), number(planned / kept, 2) if kept else MISSING]
        about = f"{row['case']} ({format_count(row['parameters'])}, V = {format_count(row['vocabulary'])})"
        lines.append([about, *map(format_bytes, (planned, measured)), *ratio])
    return table(("recipe", "planned", "measured", "planned ÷ measured", "÷ with glibc's defaults"), lines)


def errors_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return for every stage the range of planned ÷ measured, of memory and of disk."""
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        ranges = []
        for what, digits in (("memory", 2), ("disk", 3)):
            ratios = [row[what]["planned"] / row[what]["measured"] for row in own]
            ranges.append(f"{number(min(ratios), digits)} to {number(max(ratios), digits)}")
        lines.append([f"`{stage}`", str(len(own)), *ranges])
    return table(("stage", "recipes", "memory", "disk"), lines)
