"""Progress bars with rates and time left; one line per stage where there is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

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

from tdistill.processes import is_main_process

console = Console(stderr=True, highlight=False, quiet=not is_main_process())


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {task.fields.get('unit', 'it')}/s", style="cyan")


class Bar:
    """A running bar: ``advance`` it, and ``note`` what people would like to see beside it."""

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
    """A progress bar over ``total`` units, ``done`` of them already."""
    columns = [
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, unit=unit, note="")
        yield Bar(progress, task)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    console.print(text, soft_wrap=True, markup=False)
