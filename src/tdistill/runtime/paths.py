"""Read and check paths that a recipe, a model's file or the command line names."""

import difflib
import errno
from pathlib import Path

from tdistill.runtime.errors import DataError, TdistillError

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


def local_path(source: str, error: type[TdistillError] = DataError) -> Path:
    """Return the path that a recipe, a model's file or the command line names, with ``~`` expanded.

    Raises:
        error: the user in ``~user`` does not exist, or the name can't be a path.
    """
    try:
        path = Path(source).expanduser()
        path.exists()  # raises on a name that is too long, or below a directory that can't be read
    except (RuntimeError, OSError, ValueError) as cause:
        raise error(f"{source!r:.200} can't be read as a path: {cause!s:.200}") from cause
    return path


def check_path(text: str) -> str:
    """Check that a text can be a path or a hub id, and return it.

    Raises:
        ValueError: it is empty, names an unknown user's home, or is longer than the file system allows.
    """
    if not text.strip():
        raise ValueError("must name a file, a directory or a hub id")
    try:
        Path(text).expanduser().stat()
    except RuntimeError:
        raise ValueError(f"no home directory is known for {text.partition('/')[0]!r:.60}: write the whole path") from None
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise ValueError(f"can't be a path: {error.strerror}") from None
    return text


def nearest_path(text: str) -> str:
    """Return an existing path that differs from ``text`` by a few letters in one or more of its parts, or an empty text."""
    path = Path(text).expanduser()
    here = Path(path.anchor or ".")
    for part in path.relative_to(path.anchor).parts if path.anchor else path.parts:
        if part == ".." or (here / part).exists():
            here = here / part
            continue
        try:
            names = [entry.name for entry in here.iterdir()]
        except OSError:
            return ""
        close = difflib.get_close_matches(part, names, n=1, cutoff=0.6)
        if not close:
            return ""
        here = here / close[0]
    return "" if here == path else str(here)
