"""Hold a table as plain values, and format its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tdistill.statistics.estimate import Estimate

MISSING = "–"
ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}

Align = Literal["left", "right"]
Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Cell:
    """Hold one value as text; ``strong`` marks the best of a column, ``tone`` a verdict."""

    text: str
    strong: bool = False
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Hold a table as plain values, however it is rendered; the first cells of a row name the row."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    align: list[Align]
    terminal: bool = False  # the terminal shows it too
    labels: int = 1  # number of cells that name a row


def heading(title: str, better: str) -> str:
    """Return a column title with ↑ or ↓ for the direction that is better: "higher", "lower" or "" for neither."""
    return title + ARROWS[better]


def right_aligned(columns: int, left: int = 1) -> list[Align]:
    """Return the alignment of a table of numbers: the first ``left`` columns to the left, the others to the right."""
    return ["left" if i < left else "right" for i in range(columns)]


def format_number(value: float, decimals: int | None = None) -> str:
    """Format a number with grouped thousands and a true minus sign, with three significant digits unless ``decimals`` is given.

    Examples:
        >>> format_number(-1234.5678), format_number(0.012345), format_number(2.0, 3)
        ('−1,235', '0.0123', '2.000')
    """
    if not math.isfinite(value):
        return MISSING
    text = f"{value:,.{_decimals(value, 3) if decimals is None else decimals}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def format_estimate(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Format an estimate as ``mean ± stderr``; an en dash if there is no mean.

    The standard error has two digits if it begins with 1 or 2, otherwise one; the mean has the same decimals.

    Examples:
        >>> format_estimate(Estimate(23.4567, 0.1321, 10)), format_estimate(Estimate(23.4567, 0.4321, 10), signed=True)
        ('23.46 ± 0.13', '+23.5 ± 0.4')
    """
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
    """Format a duration in its two largest units: ``12.3 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float) -> str:
    """Format a size in binary units: ``3.9 GiB``; an en dash if it is 0."""
    if size <= 0:
        return MISSING
    power = min(int(math.log2(size) // 10), 4)
    return f"{size / 1024**power:.{0 if power == 0 else 1}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _decimals(value: float, significant: int) -> int:
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return min(max(significant - 1 - magnitude, 0), 6)


def transposed(table: Table) -> Table:
    """Turn rows into columns; every column but the first is aligned to the right."""
    header = [table.header[0], *(row[0].text for row in table.rows)]
    rows = [[Cell(name), *(row[i] for row in table.rows)] for i, name in enumerate(table.header) if i]
    return replace(table, header=header, rows=rows, align=right_aligned(len(header)))


def columns_of(table: Table, chosen: Sequence[int]) -> Table:
    """Return a table of the chosen columns, in that order."""
    rows = [[row[i] for i in chosen] for row in table.rows]
    return replace(table, header=[table.header[i] for i in chosen], rows=rows, align=[table.align[i] for i in chosen])
