"""Check values that come from outside: what a recipe file can hold and every stage can write back, and paths."""

import dataclasses
import difflib
import enum
import errno
import math
import re
import types
import typing
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tdistill.runtime.secrets_guard import is_secret

MOST_DEPTH = 40
# An objective's argument may be infinite, such as a ratio that is not clipped: its own signature says which.
UNBOUNDED = frozenset({"objective", "baselines"})
_LEAST, _MOST = -(2**63), 2**63 - 1
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)


@dataclass(frozen=True)
class Unplain:
    """Describe a value that a recipe can't hold: where it is, and what is wrong."""

    place: str  # dotted; empty at the top
    problem: str


def find_unplain(value: Any, numbers_only: bool = False) -> Unplain | None:
    """Find the first value that no recipe can hold: NaN, infinity, an integer beyond 64 bits, an object, a control character, a secret.

    ``numbers_only`` lets the last two pass.
    """
    todo: deque[tuple[str, Any, int]] = deque([("", value, 0)])
    while todo:
        place, item, depth = todo.popleft()
        if isinstance(item, float) and math.isinf(item) and not UNBOUNDED.isdisjoint(place.split(".")):
            continue
        problem = _problem(item, numbers_only) if depth <= MOST_DEPTH else f"is nested more than {MOST_DEPTH} levels deep"
        if problem:
            return Unplain(place, problem)
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str) or (not numbers_only and _CONTROLS.search(key)):
                    return Unplain(place, f"has the key {key!r:.60}, which is not plain text")
                here = f"{place}.{key:.60}".lstrip(".")
                if not numbers_only and is_secret(key) and inner is not None:
                    return Unplain(here, "is a secret, and a recipe is copied into every result. Take it out; set it in the environment")
                todo.append((here, inner, depth + 1))
        elif isinstance(item, list):
            todo += [(f"{place}.{i}".lstrip("."), inner, depth + 1) for i, inner in enumerate(item)]
    return None


def _problem(item: Any, numbers_only: bool) -> str:
    if item is None or isinstance(item, bool | dict | list | BaseModel):
        return ""
    if isinstance(item, int):
        return "" if _LEAST <= item <= _MOST else "must be an integer of at most 64 bits"
    if isinstance(item, float):
        return "" if math.isfinite(item) else f"must be a finite number, got {item}"
    if isinstance(item, str):
        found = None if numbers_only else _CONTROLS.search(item)
        return f"holds the control character U+{ord(found[0]):04X}" if found else ""
    return f"must be text, a number, true, false, null, a list or a mapping, got {type(item).__name__}"


def check_path(text: str) -> str:
    """Return a path or hub id unchanged.

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


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Return the type of every argument of a data class."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    return {k: v for k, v in typing.get_type_hints(cls).items() if k in known}


def fits(value: Any, hint: Any) -> bool:
    """Say whether a value of a recipe has a type, with no conversion but that of whole numbers to floats."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if origin in (list, set) or hint in (list, set):
        return isinstance(value, list) and all(not inner or fits(item, inner[0]) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and all(not inner or fits(item, inner[1]) for item in value.values())
    return isinstance(hint, type) and isinstance(value, hint)


def describe_hint(hint: Any) -> str:
    """Name a type as a recipe's author would: ``a whole number, or null``."""
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null", dict: "a mapping"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return ", or ".join(dict.fromkeys(describe_hint(option) for option in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) in (list, set):
        return "a list"
    return words.get(typing.get_origin(hint) or hint, str(hint))
