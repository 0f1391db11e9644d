"""Show progress bars with rates and time left; without a terminal, one line for each stage."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tdistill.runtime.processes import is_main_process


class _StandardError(io.TextIOBase):
    """Write to the current standard error. If it was closed, as a terminal or a pipe may be, the work goes on without a message."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # a ValueError: a closed file, or letters it can't encode
            if sys.stderr is not None:
                sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    def fileno(self) -> int:
        if sys.stderr is None:
            raise io.UnsupportedOperation("no standard error")
        return sys.stderr.fileno()


WIDE = 100  # columns of a terminal; a narrower one gets shorter bars without rates, on one line
console = Console(file=cast(TextIO, _StandardError()), highlight=False, quiet=not is_main_process())


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {task.fields.get('unit', 'it')}/s", style="cyan")


class Bar:
    """Show a running bar: ``advance`` moves it, and ``note`` shows text beside it."""

    def __init__(self, progress: Progress, task_id: int):
        self._progress, self._task = progress, task_id

    def advance(self, amount: float = 1) -> None:
        """Count ``amount`` more as done."""
        self._progress.update(self._task, advance=amount)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        """Show ``text`` at the end of the bar."""
        self._progress.update(self._task, note=text)  # type: ignore[arg-type]


@contextmanager
def bar(title: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
    """Show a progress bar over ``total`` units, ``done`` of them already complete."""
    wide = console.width >= WIDE
    columns = [
        TextColumn("{task.description:<26}" if wide else "{task.description}"),
        BarColumn(bar_width=24 if wide else 8),
        MofNCompleteColumn(),
        *([_Rate()] if wide else []),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, unit=unit, note="")
        yield Bar(progress, task)


def say(text: str) -> None:
    """Print a line for the user on standard error."""
    console.print(text, soft_wrap=True, markup=False)
