"""Hold a table as plain values, format its numbers, and render it as Markdown, HTML and a terminal table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import rich.box
import rich.table
from rich.text import Text

from tdistill.pages.text import escape_html, escape_markdown, visible
from tdistill.statistics.estimate import Estimate

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
