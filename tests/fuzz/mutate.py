"""Seeded mutations of valid files: of their bytes, and of the values in them. The same seed makes the same mutations."""

import copy
import math
import random
import string
from collections.abc import Callable, Iterator
from typing import Any

DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]

# Values that a user, another program or an attacker may put where another was meant.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 5_000_000_000, 2**70, -(2**63), 10**4000, 0.0, -0.5, 0.5, 2.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "\n", "\x00", "a\x00b", "\ud800", "\u202e", "é", "~nouser", "../../etc/passwd", "/dev/null", "/", ".", "null", "1e-4", "0x10",
    "%s{0}{x}", "{{ 1 }}", "[bold]x[/bold]", "<script>", "x" * 70_000, [], {}, [None], [[]], {"": None}, {"a": {"b": []}}, [1, "a", None], DEEP,
)  # fmt: skip


def mutated_bytes(valid: bytes, seed: int, count: int) -> Iterator[bytes]:
    """``count`` damaged copies: flipped bits, cut ends, lost, repeated, swapped and inserted pieces, one to three at a time."""
    rng = random.Random(seed)
    for _ in range(count):
        content = bytearray(valid)
        for _ in range(rng.randint(1, 3)):
            rng.choice(_BYTE_CHANGES)(rng, content)
        yield bytes(content)


def mutated_values(valid: Any, seed: int, count: int) -> Iterator[Any]:
    """``count`` copies of a tree of dicts and lists, with one or two places changed: another value, a lost, renamed, new or nested one."""
    rng = random.Random(seed)
    for _ in range(count):
        value = copy.deepcopy(valid)
        for _ in range(rng.randint(1, 2)):
            value = _change(rng, value)
        yield value


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below a tree, the root's own ``()`` first."""
    found = [prefix]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*prefix, key))
    return found


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """``value`` with ``new`` at a place, in place where it can."""
    if not place:
        return new
    node = value
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = new
    return value


def _change(rng: random.Random, value: Any) -> Any:
    place = rng.choice(places(value))
    node = value
    for key in place:
        node = node[key]
    kind = rng.choice(("other", "other", "other", "lost", "renamed", "new", "nested", "text"))
    if kind == "lost" and place:
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        del parent[place[-1]]
        return value
    if kind == "renamed" and isinstance(node, dict) and node:
        key = rng.choice(sorted(node, key=str))
        node[rng.choice((f"{key}x", str(key).upper(), str(key)[:-1], ""))] = node.pop(key)
        return value
    if kind == "new" and isinstance(node, dict):
        node["".join(rng.choices(string.ascii_lowercase, k=5))] = copy.deepcopy(rng.choice(HOSTILE))
        return value
    if kind == "nested":
        return put(value, place, rng.choice(([node], {"value": node}, [node, node])))
    if kind == "text" and not isinstance(node, dict | list):
        return put(value, place, str(node))
    return put(value, place, copy.deepcopy(rng.choice(HOSTILE)))


def _flip(rng: random.Random, content: bytearray) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, content: bytearray) -> None:
    if content:
        at = rng.randrange(len(content))
        piece = rng.choice((b"\x00" * 8, b"\xff" * 8, b"\xed\xa0\x80", b"\r\n", b'"', b"{", b"NaN", b"1" * 5000, rng.randbytes(16)))
        content[at : at + len(piece)] = piece


def _cut(rng: random.Random, content: bytearray) -> None:
    if content:
        del content[rng.randrange(len(content)) :]


def _lose(rng: random.Random, content: bytearray) -> None:
    if content:
        at = rng.randrange(len(content))
        del content[at : at + rng.randint(1, 64)]


def _repeat(rng: random.Random, content: bytearray) -> None:
    if content:
        at = rng.randrange(len(content))
        content[at:at] = content[at : at + rng.randint(1, 64)]


def _swap(rng: random.Random, content: bytearray) -> None:
    if len(content) > 16:
        a, b, n = rng.randrange(len(content) - 8), rng.randrange(len(content) - 8), rng.randint(1, 8)
        content[a : a + n], content[b : b + n] = content[b : b + n], content[a : a + n]


_BYTE_CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (_flip, _flip, _overwrite, _overwrite, _cut, _lose, _repeat, _swap)
