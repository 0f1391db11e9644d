"""Build the report's tables as plain values, and render them as Markdown, HTML and a terminal table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import rich.box
import rich.table
from rich.text import Text

from tdistill.evaluation.metrics import METRICS
from tdistill.pages.text import escape_html, escape_markdown, visible
from tdistill.report.data import Comparison, Sparsity, Stage, System
from tdistill.statistics.estimate import Estimate

TEACHER = "teacher"
MISSING = "–"
MOST_TERMINAL_COLUMNS = 6
ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}

Align = Literal["left", "right"]
Tone = Literal["", "good", "bad"]
TONE_STYLES: dict[Tone, str] = {"": "", "good": "green", "bad": "red"}


@dataclass(frozen=True)
class Cell:
    """Hold one value as text; ``strong`` marks the best of a column, ``tone`` a verdict."""

    text: str
    strong: bool = False
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Hold a table that knows nothing of its rendering; the first cell of a row names the row."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    align: list[Align]


def format_number(value: float, decimals: int | None = None) -> str:
    """Format ``value`` with grouped thousands and a true minus sign; three significant digits unless ``decimals`` says otherwise."""
    if not math.isfinite(value):
        return MISSING
    text = f"{value:,.{_decimals(value, 3) if decimals is None else decimals}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def format_estimate(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Format ``mean ± stderr``, to two digits of a standard error that begins with 1 or 2, else to one; an en dash without a mean."""
    if estimate is None or not math.isfinite(estimate.mean):
        return MISSING
    mean, stderr = estimate.mean, estimate.stderr
    plus = "+" if signed and mean > 0 else ""
    if not math.isfinite(stderr) or stderr < 0:
        return plus + format_number(mean)
    first_digit = int(f"{stderr:e}"[0])
    decimals = _decimals(stderr, 2 if first_digit < 3 else 1) if stderr > 0 else _decimals(mean, 3)
    return f"{plus}{format_number(mean, decimals)} ± {format_number(stderr, decimals)}"


def format_count(count: int) -> str:
    """Format a number of parameters: ``512``, ``63.7M``, ``1.24B``."""
    size, suffix = next(((s, t) for s, t in ((10**9, "B"), (10**6, "M"), (10**3, "k")) if count >= s), (1, ""))
    return f"{format_number(count / size)}{suffix}" if suffix else str(count)


def format_seconds(seconds: float) -> str:
    """Format a duration in the two units that matter: ``12.3 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float) -> str:
    """Format a size in binary units; an en dash for nothing."""
    if size <= 0:
        return MISSING
    power = min(int(math.log2(size) // 10), 4)
    return f"{size / 1024**power:.{0 if power == 0 else 1}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _decimals(value: float, significant: int) -> int:
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return min(max(significant - 1 - magnitude, 0), 6)


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
    header = ["system", "parameters", "layers", *(METRICS[m][0] + ARROWS[METRICS[m][2]] for m in metrics)]
    caption = "Quality of every system: mean ± standard error. Arrows point to better."
    if any(best.values()):
        caption += " Bold is the best student of a column."
    align: list[Align] = ["right"] * len(header)
    align[0] = "left"
    return Table(caption, header, rows, align)


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
            Cell(METRICS[c.metric][0] + ARROWS[METRICS[c.metric][2]] if c.metric in METRICS else c.metric),
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
    return Table(caption, header, rows, ["left", "left", "right", "right", "left"])


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


def to_markdown(table: Table) -> str:
    """Render a pipe table, without its caption."""
    lines = [list(map(escape_markdown, table.header)), [":---" if a == "left" else "---:" for a in table.align]]
    for row in table.rows:
        lines.append([f"**{escape_markdown(c.text)}**" if c.strong and c.text else escape_markdown(c.text) for c in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_html(table: Table) -> str:
    """Render a ``<table>`` with caption and row headings, in its own box that scrolls."""
    head = "".join(f'<th scope="col" class="{a}">{escape_html(h)}</th>' for h, a in zip(table.header, table.align, strict=True))
    body = "\n".join(f"<tr>{_html_row(row, table.align)}</tr>" for row in table.rows)
    label = escape_html(table.caption)
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{label}">\n'
        f"<table>\n<caption><span>{label}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _html_row(row: Sequence[Cell], align: Sequence[Align]) -> str:
    cells = []
    for i, (cell, side) in enumerate(zip(row, align, strict=True)):
        text = f"<strong>{escape_html(cell.text)}</strong>" if cell.strong else escape_html(cell.text)
        opening = 'th scope="row"' if i == 0 else "td"
        cells.append(f'<{opening} class="{" ".join(filter(None, (side, cell.tone)))}">{text}</{opening[:2]}>')
    return "".join(cells)


def transposed(table: Table) -> Table:
    """Turn rows into columns; every column but the first is aligned to the right."""
    header = [table.header[0], *(row[0].text for row in table.rows)]
    rows = [[Cell(name), *(row[i] for row in table.rows)] for i, name in enumerate(table.header) if i]
    align: list[Align] = ["right"] * len(header)
    align[0] = "left"
    return Table(table.caption, header, rows, align)


def to_rich(table: Table) -> rich.table.Table:
    """Render the table for the terminal, transposed if it is wider than high; cells are literal text."""
    if len(table.header) > MOST_TERMINAL_COLUMNS and len(table.rows) < len(table.header):
        table = transposed(table)
    result = rich.table.Table(caption=Text(visible(table.caption)), caption_justify="left", box=rich.box.SIMPLE_HEAD)
    for name, side in zip(table.header, table.align, strict=True):
        result.add_column(Text(visible(name)), justify=side, overflow="fold")
    for row in table.rows:
        styles = [" ".join(filter(None, ("bold" if c.strong else "", TONE_STYLES[c.tone]))) for c in row]
        result.add_row(*(Text(visible(c.text), style=style) for c, style in zip(row, styles, strict=True)))
    return result
