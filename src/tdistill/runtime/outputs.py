"""Claim an output directory for one command at a time. Runs of recipes have locks of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdistill.runtime.disk import disk_errors
from tdistill.runtime.errors import ConfigError, OutputError, visible
from tdistill.runtime.files import PARTIAL
from tdistill.runtime.locks import LOCK, hold
from tdistill.runtime.stops import keeping


@contextmanager
def claimed(directory: Path, argument: str, mark: str | None, command: str) -> Iterator[None]:
    """Make a directory, and lock out other processes inside the block.

    Args:
        directory: where the command writes.
        argument: the name of the directory on the command line.
        mark: a file that an earlier run of the command left there. None: the directory may hold anything.
        command: the name of the command, for the message after a stop.

    Raises:
        ConfigError: the directory holds something else.
        OutputError: another process writes there, or it can't be written.
    """
    try:
        if mark is not None and directory.exists() and (not directory.is_dir() or not _fits(directory, mark, command)):
            raise ConfigError(f"{argument} {directory} holds something else. Choose an empty or new directory.")
        directory.mkdir(parents=True, exist_ok=True)
        lock = hold(directory / LOCK, f"{argument} {directory}")
    except (OSError, ValueError) as error:  # a ValueError: a NUL byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OutputError(f"Can't write to {visible(str(directory))}: {reason}. Choose another {argument}.") from error
    try:
        with disk_errors(directory), keeping(lambda: f"`{command}` writes its pages at the end, so nothing of it is kept. Give it again."):
            yield
    finally:
        lock.release()


def _fits(directory: Path, mark: str, command: str) -> bool:
    # A stop may have left pages without the mark, which comes last.
    names = {path.name for path in directory.iterdir() if not path.name.endswith(PARTIAL)}
    return mark in names or names <= {LOCK, "figures", f"{command}.md", f"{command}.html"}
