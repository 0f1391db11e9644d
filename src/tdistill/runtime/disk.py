"""Turn errors of the disk into an ``OutputError`` that says what to do. All other errors pass unchanged, since they may be bugs."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdistill.runtime.errors import OutputError, TdistillError
from tdistill.runtime.locks import gone_directory, held_directories

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# Errors that only a disk has, so that they need not name a file.
FAILING = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENXIO)
# torch.save does not say why it could not write; safetensors says it in words of its own.
TORCH_CANT_WRITE = ("PytorchStreamWriter failed writing", "inline_container.cc", "iostream error")
SAFETENSORS_CANT_WRITE = "Error while serializing"
TORCH_NO_DIRECTORY = "Parent directory"
RUN_AGAIN = "and run again: what is complete is kept, and training goes on from its last whole checkpoint."


@contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turn an error that comes from the disk below ``directory``, in whatever words, into ``OutputError``.

    Raises:
        OutputError: the disk is full, failing or read-only, a file can't be written or read, or the directory was deleted.
    """
    try:
        yield
    except DirectoryGoneError:
        raise
    except Exception as error:  # one that is not explained is raised again
        explained = explain(error, [directory, *held_directories()])
        if explained is None:
            raise
        raise explained from error


@contextmanager
def staying(directory: Path, what: str) -> Iterator[None]:
    """Check after the block that ``directory`` is still the same directory, and not one that a library made again.

    Raises:
        OutputError: it, or an output directory of this process, was deleted or replaced.
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)  # open, so that no new directory gets its inode
    try:
        yield
        if gone_directory() is not None or not directory.exists() or not os.path.samestat(os.fstat(handle), directory.stat()):
            raise DirectoryGoneError(f"{directory} was deleted or replaced while `{what}` wrote there. Run again to make it anew.")
    finally:
        os.close(handle)


class DirectoryGoneError(OutputError):
    """Report that a directory was deleted or replaced while this process wrote there."""


def explain(error: Exception, directories: list[Path]) -> OutputError | None:
    """Return the error for the user if ``error`` comes from the disk below ``directories``; None if it may be a bug or is clear already."""
    gone = gone_directory()
    if gone is not None:  # then a file that is missing, or damaged, is so for this reason
        return DirectoryGoneError(
            f"{gone} was deleted or replaced while this command wrote there ({_first_line(error)}). Run again to make it anew."
        )
    if isinstance(error, TdistillError):
        return None
    if _is_full(error):
        return OutputError(
            f"The disk is full: can't write to {directories[0]} ({_first_line(error)}). Free some space, or move output_dir, {RUN_AGAIN}"
        )
    if isinstance(error, OSError):
        named = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
        places = [name for name in named if any(_is_below(Path(name), d) for d in directories)]
        if places or error.errno in FAILING or any(str(d.absolute()) in str(error) for d in directories):
            place = places[0] if places else directories[0]
            reason = os.strerror(error.errno) if error.errno else _first_line(error)
            return OutputError(f"Can't write or read {place}: {reason}. Look at the disk and its permissions, {RUN_AGAIN}")
    if isinstance(error, IsADirectoryError | NotADirectoryError | UnicodeError) or not _is_of_a_writer(error):
        return None
    return OutputError(f"Can't write to {directories[0]} ({_first_line(error)}). Look at the disk and its permissions, {RUN_AGAIN}")


def _is_full(error: Exception) -> bool:
    text = str(error)
    return (isinstance(error, OSError) and error.errno in FULL) or (
        _is_of_a_writer(error)
        and (any(f"os error {n})" in text or os.strerror(n) in text for n in FULL) or any(words in text for words in TORCH_CANT_WRITE))
    )


def _is_of_a_writer(error: Exception) -> bool:
    """Tell whether the error means that torch or safetensors could not write a file."""
    text = str(error)
    if type(error).__name__ == "SafetensorError":  # by name: importing it costs time, and here only errors are read
        return SAFETENSORS_CANT_WRITE in text
    return isinstance(error, RuntimeError) and (TORCH_NO_DIRECTORY in text or any(words in text for words in TORCH_CANT_WRITE))


def _is_below(path: Path, directory: Path) -> bool:
    # Not resolved: the path may be gone.
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(directory))
    return absolute == root or root in absolute.parents


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n", 1)[0][:300]
