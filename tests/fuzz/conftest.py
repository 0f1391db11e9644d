"""Counts of the fuzz suite: every test records what became of its inputs, and the run ends with one table."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tdistill.runtime.errors import TdistillError


@pytest.fixture
def outcomes(record_property: Callable[[str, object], None]) -> Callable[..., Counter[str]]:
    """Run every input, and count: accepted and right, or refused with a ``TdistillError`` that says something. All else fails the test.

    ``outcomes(kind, inputs, attempt, is_right)``: ``attempt(input)`` returns what was read; ``is_right(input, result)`` is the oracle of
    what may be accepted.
    """

    def run(kind: str, inputs: Iterable[Any], attempt: Callable[[Any], Any], is_right: Callable[[Any, Any], bool]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for content in inputs:
            counts["inputs"] += 1
            try:
                result = attempt(content)
            except TdistillError as error:
                said = str(error)
                counts["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error!s:.300}, of {content!r:.500}") from error
            else:
                assert is_right(content, result), f"accepted in silence: {content!r:.500}, read as {result!r:.500}"
                counts["accepted"] += 1
                continue
            assert len(said) > 20, f"{said!r} says too little, of {content!r:.500}"
        record_property("fuzz", {"kind": kind, **counts})
        return counts

    return run
