"""Files that are written whole or not at all: what has its name is complete, after a kill as after a full disk."""

import json
import lzma
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A handle whose content takes the name ``path`` once it is on the disk; on an error nothing is left.

    Raises:
        OSError: the disk is full or can't be written.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with Unix line ends."""
    with replacing(path) as handle:
        handle.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, keys in order."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, compressed if the name ends in ``.xz``."""
    text = "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    with replacing(path) as handle:
        handle.write(lzma.compress(text) if path.suffix == ".xz" else text)


def read_jsonl(path: Path) -> list[Any]:
    """Read JSON lines back."""
    content = path.read_bytes()
    content = lzma.decompress(content) if path.suffix == ".xz" else content
    # Not splitlines: a text may hold U+2028 and its like, which JSON leaves as they are.
    return [json.loads(line) for line in content.decode("utf-8").split("\n") if line]
