"""Write files whole or not at all: a file under its final name is complete, also after a kill or on a full disk."""

import errno
import json
import lzma
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tdistill.runtime.errors import OutputError, TdistillError
from tdistill.runtime.parse import parse_json
from tdistill.runtime.stops import before_end

PARTIAL = ".partial"  # ends the name of a file that is being written
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some file systems can't do it to a directory
_writing: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, which gets the name ``path`` once it is on the disk. After an error it is removed.

    The temporary name can't be guessed and is never an existing file, so no link of an attacker is followed.

    Raises:
        OSError: the disk is full or can't be written.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{PARTIAL}")
    _writing.add(temporary)
    try:
        with temporary.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        # Not found, or its directory is gone: then an error of its own is on its way.
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()
        _writing.discard(temporary)


def drop_partial() -> None:
    """Remove the files that this process is writing. The process must end right after."""
    for path in list(_writing):
        with suppress(OSError):
            path.unlink()


before_end(drop_partial)


def sync_directory(directory: Path) -> None:
    """Write the names in a directory to the disk, so that a renamed file is found after a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Write every file below a directory to the disk, since other libraries do not. Links are not followed."""
    for path in sorted(directory.rglob("*")):
        with suppress(FileNotFoundError):  # a tracker may be tidying up its logs
            if path.is_symlink():
                continue
            if path.is_dir():
                sync_directory(path)
            elif path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
    sync_directory(directory)


def remove_partial(directory: Path) -> None:
    """Remove the half-written files that killed processes left below a directory. No other process may be writing there."""
    for path in directory.rglob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends. Half of a surrogate pair, which UTF-8 can't encode, becomes ``\\udXXX``, which JSON reads back."""
    with replacing(path) as handle:
        handle.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, compressed if the name ends in ``.xz``."""
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace")
    with replacing(path) as handle:
        handle.write(lzma.compress(text) if path.suffix == ".xz" else text)


def read_json(path: Path, error: type[TdistillError], advice: str = "") -> Any:
    """Read the JSON value of a file.

    Raises:
        error: the file is missing, can't be read, or is not JSON; ``advice`` says what to do.
    """
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise error(f"{path} can't be read: {cause.strerror}. {advice}".strip()) from cause
    return parse_json(content, str(path), error, advice=advice, own=True)


def read_jsonl(path: Path, error: type[TdistillError] = OutputError, advice: str = "") -> list[Any]:
    """Read the JSON value of every line of a file.

    Raises:
        error: the file is missing, can't be read, or a line is not JSON; ``advice`` says what to do.
    """
    try:
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
    except (OSError, lzma.LZMAError) as cause:
        raise error(f"{path} can't be read: {getattr(cause, 'strerror', None) or cause}. {advice}".strip()) from cause
    # Not splitlines: a text may hold U+2028 and its like, which JSON leaves as they are.
    lines = enumerate(content.split(b"\n"), start=1)
    return [parse_json(line, f"{path}, line {number}", error, advice=advice, own=True) for number, line in lines if line]
