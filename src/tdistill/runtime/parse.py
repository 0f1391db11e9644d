"""Parse JSON and gzip files that other programs wrote. An error names the file and the line.

Python's own parsers raise errors of several kinds (``RecursionError`` on deep nesting, ``ValueError`` on an integer of 4,300 digits,
``zlib.error``), take ``NaN`` and repeated keys without a word, and inflate any amount of data. Here each of these raises one kind of error.
"""

import gzip
import io
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

from tdistill.runtime.errors import TdistillError

# A text of 194 kB can inflate to 942 MB. Prompt files and corpora of real data shrink 3 to 10 times.
MOST_INFLATED_BYTES, MOST_INFLATION = 4 << 30, 200
SMALL_BYTES = 64 << 20  # below this any ratio is fine
_SURROGATES = re.compile("[\ud800-\udfff]")


class _NotPlainError(ValueError):
    """Report that Python reads the text as JSON, and that it is refused here."""


def parse_json(content: str | bytes, where: str, error: type[TdistillError], *, advice: str = "", own: bool = False) -> Any:
    """Parse one JSON value.

    Args:
        content: the text; bytes are read as UTF-8, with or without a byte order mark.
        where: file and line, for the message.
        error: the class to raise.
        advice: what to do, the end of the message.
        own: tdistill wrote the file: it may hold ``NaN``, infinities and halves of surrogate pairs.

    Raises:
        error: the text is not UTF-8, not JSON, nested too deeply, holds an integer of more than 4,300 digits, a number too large for a
            float, a key twice in one object, or half of a surrogate pair.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=None if own else _no_constant, parse_float=float if own else _finite)
        # Escapes are ASCII: only a text with \ud8.. or a lone surrogate itself can hold half of a pair.
        if not own and ("\\ud" in text or "\\uD" in text or _SURROGATES.search(text)) and _has_surrogate(value):
            raise _NotPlainError("a text holds half of a surrogate pair, which UTF-8 can't write")
        return value
    except UnicodeDecodeError as cause:
        problem = f"not UTF-8 (byte {cause.start} is 0x{cause.object[cause.start]:02x})"
    except json.JSONDecodeError as cause:
        problem = f"not JSON: {cause.msg} at line {cause.lineno}, column {cause.colno}"
    except RecursionError:
        problem = "JSON nested too deeply"
    except _NotPlainError as cause:
        problem = str(cause)
    except ValueError:  # Python's limit on digits, a guard against quadratic time
        problem = "an integer with too many digits"
    raise error(f"{where}: {problem}. {advice}".strip())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _NotPlainError(f"the key {twice!r:.60} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise _NotPlainError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotPlainError(f"the number {digits:.20} is too large")
    return value


def _has_surrogate(value: Any) -> bool:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            if _SURROGATES.search(item):
                return True
        elif isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            todo += item
    return False


def read_maybe_gzip(path: Path, error: type[TdistillError]) -> bytes:
    """Read a file, inflated if its name ends in ``.gz``.

    Raises:
        error: the file can't be read, is no gzip file or a truncated one, or inflates to more than ``MOST_INFLATION`` times its size
            (if that is over ``SMALL_BYTES``) or over ``MOST_INFLATED_BYTES``.
    """
    try:
        raw = path.read_bytes()
        if path.suffix.lower() != ".gz":
            return raw
        limit = min(MOST_INFLATED_BYTES, max(SMALL_BYTES, MOST_INFLATION * len(raw)))
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as handle:
            content = handle.read(limit + 1)
    except (OSError, EOFError, zlib.error) as cause:
        raise error(f"{path} can't be read: {cause}") from cause
    if len(content) > limit:
        raise error(
            f"{path} has {len(raw):,} bytes and inflates to more than {limit:,}: it looks like a decompression bomb. "
            "If it is real text, give it uncompressed."
        )
    return content
