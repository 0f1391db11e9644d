"""Read text files that other people wrote: inflate them, decode them, and say which line is wrong."""

import re
from pathlib import Path
from reprlib import repr as short
from typing import Any

from tdistill.runtime.errors import DataError
from tdistill.runtime.parse import read_maybe_gzip

# First bytes of what is often given under a text file's name. UTF-32 stands before UTF-16, whose mark its own begins with.
SIGNATURES = {
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\x00\x00\xfe\xff": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "gzip data (end its name with .gz)",
    b"PAR1": "a Parquet file (end its name with .parquet)",
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "xz data",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"BZh": "bzip2 data",
}


_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


def inner_suffix(path: Path) -> str:
    """Return the suffix of a file's name without ``.gz``, in lower case: ``.jsonl`` of ``A.JSONL.GZ``."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def read_text(path: Path) -> str:
    """Read a UTF-8 file, inflated if its name ends in ``.gz``; a byte order mark at its start is removed.

    Raises:
        DataError: the file can't be read, has another encoding or format, or holds a NUL character; the line is named.
    """
    content = read_maybe_gzip(path, DataError)
    for signature, kind in SIGNATURES.items():
        if content.startswith(signature):
            raise DataError(f"{path} is {kind}, not UTF-8 text. Convert it to UTF-8.")
    nul = content.find(b"\x00")
    if nul >= 0 and content[:200].count(b"\x00") * 3 > len(content[:200]):
        raise DataError(f"{path} has NUL in every other byte: it looks like UTF-16 text. Convert it to UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts without the byte order mark, so count in the bytes that it saw.
        start = content.rfind(b"\n", 0, error.start) + 1
        where = f"{path}, line {content.count(bytes([10]), 0, error.start) + 1}"
        raise DataError(f"{where}: not UTF-8 (byte {error.start - start} is 0x{error.object[error.start]:02x}).") from None
    if nul >= 0:
        raise DataError(f"{path}, line {content.count(bytes([10]), 0, nul) + 1}: a NUL character (byte 0). Remove it.")
    return text


def checked_text(where: str, name: str, value: Any) -> str:
    """Return ``value`` if it is a text that a tokenizer can read.

    Raises:
        DataError: it is no text, or holds a NUL character or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` must be text, got {type(value).__name__} {short(value)}.")
    wrong = _NOT_TEXT.search(value)
    if wrong:
        kind = "a NUL character" if wrong[0] == "\x00" else "half of a surrogate pair, which is no character"
        raise DataError(f"{where}: `{name}` holds {kind}, at character {wrong.start() + 1}. Remove it.")
    return value
