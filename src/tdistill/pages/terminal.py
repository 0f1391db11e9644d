"""Print tables and notes in the terminal, within its width."""

import rich.box
import rich.table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tdistill.pages.parts import Document, Notes
from tdistill.pages.tables import Align, Table, Tone, columns_of, transposed
from tdistill.pages.text import visible

MOST_COLUMNS = 6
TONE_STYLES: dict[Tone, str] = {"": "", "good": "green", "bad": "red"}


def print_document(console: Console, document: Document) -> None:
    """Print the tables and notes that a document has for the terminal."""
    for section in document.sections:
        for part in section.parts:
            if isinstance(part, Table) and part.terminal:
                print_table(console, part)
            elif isinstance(part, Notes) and part.terminal:
                for note in part.texts:
                    console.print(f"Note: {visible(note)}", soft_wrap=True, highlight=False, markup=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table; one that is wider than the terminal becomes several, each with the columns that name the rows."""
    for part in fitted(table, console):
        console.print(to_rich(part, keeps_numbers=_fits(part, console)))
    if table.caption:
        console.print(Text(visible(table.caption), style="table.caption"))


def fitted(table: Table, console: Console) -> list[Table]:
    """Split a table by columns into tables that fit the terminal. Numbers stay on one line; texts may wrap between words.

    A table of many columns and few rows is transposed first.
    """
    if table.labels == 1 and len(table.header) > MOST_COLUMNS and len(table.rows) < len(table.header):
        table = transposed(table)
    labels = list(range(table.labels))
    blocks = [labels.copy()]
    for column in range(table.labels, len(table.header)):
        if len(blocks[-1]) > table.labels and not _fits(columns_of(table, [*blocks[-1], column]), console):
            blocks.append(labels.copy())
        blocks[-1].append(column)
    return [columns_of(table, block) for block in blocks]


def to_rich(table: Table, *, keeps_numbers: bool = True) -> rich.table.Table:
    """Render the table for ``rich``, without its caption; cells are literal text.

    Args:
        table: the table.
        keeps_numbers: never break a number (a column that is aligned to the right) nor a word. What does not fit is cut off, so set it only
            for a table that fits.
    """
    result = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for (name, side), width in zip(zip(table.header, table.align, strict=True), _least_widths(table), strict=True):
        least = width if keeps_numbers else None
        result.add_column(Text(visible(name)), justify=side, overflow="fold", no_wrap=keeps_numbers and side == "right", min_width=least)
    for row in table.rows:
        styles = [" ".join(filter(None, ("bold" if c.strong else "", TONE_STYLES[c.tone]))) for c in row]
        result.add_row(*(Text(visible(c.text), style=style) for c, style in zip(row, styles, strict=True)))
    return result


def _fits(table: Table, console: Console) -> bool:
    """Tell whether the terminal is wide enough for every number and every word of a table."""
    widths = _least_widths(table)
    # rich puts a space on either side of every text, one between columns and one at either end.
    return sum(width + 2 for width in widths) + len(widths) + 1 <= console.width


def _least_widths(table: Table) -> list[int]:
    """Return the width that each column needs for its longest number or word."""
    columns = zip(table.header, table.align, *([c.text for c in row] for row in table.rows), strict=True)
    return [max(cell_len(part) for text in (name, *texts) for part in _unbroken(text, side)) for name, side, *texts in columns]


def _unbroken(text: str, side: Align) -> list[str]:
    return [visible(text)] if side == "right" else visible(text).split() or [""]
