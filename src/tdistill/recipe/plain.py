"""Check that a value can stand in a recipe file, so that every stage can write it back."""

import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tdistill.runtime.secrets_guard import is_secret

MOST_DEPTH = 40
# An objective's argument may be infinite, such as a ratio that is not clipped: its own signature says which.
UNBOUNDED = frozenset({"objective", "baselines"})
_LEAST, _MOST = -(2**63), 2**63 - 1
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Unplain:
    """Describe a value that a recipe can't hold: where it is, and what is wrong."""

    place: str  # dotted; empty at the top
    problem: str


def find_unplain(value: Any, numbers_only: bool = False) -> Unplain | None:
    """Find the first value that no recipe can hold: NaN, infinity, an integer beyond 64 bits, an object, a control character, a secret.

    Args:
        value: what was read, with lists and mappings inside.
        numbers_only: accept control characters and secrets.
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
