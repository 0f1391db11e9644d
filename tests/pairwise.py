"""A small set of combinations in which every two values still meet, in place of the full product of all knobs."""

import itertools
import random
from collections.abc import Iterable
from typing import Any

Pair = tuple[str, str, str, str]


def pairs(case: dict[str, Any]) -> set[Pair]:
    """Return every two settings of a case, as (key, value, other key, other value)."""
    items = [(key, repr(value)) for key, value in case.items()]
    return {(*a, *b) for a, b in itertools.combinations(items, 2)} or {(*items[0], "", "")}


def pairwise(cases: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose cases until every pair of settings that occurs in any case occurs in a chosen one. Greedy, and the same every time."""
    left = list(cases)
    random.Random(0).shuffle(left)
    missing = set().union(*map(pairs, left))
    chosen = []
    while missing:
        best = max(left, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen
