"""Define step-wise arithmetic modulo a prime, in which every step may add one or multiply.

The prompt gives a key, ``*k``, and a start x. Each of H steps is the step's number with an operation, and its result: ``t:+`` x → x + 1, the
same table for every problem, or ``t:*`` x → x·(x + k), a table for each key. The way is free at every step. Modulo 7, "*3 5" may go on as
"1:+ 6 2:* 5". Multiplication by k alone would be too easy: a small student finds the discrete logarithm, and needs no table.
"""

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from task import Task, Verdict

from tdistill.runtime.errors import ConfigError

EASY, HARD = "+", "*"


@dataclass(frozen=True)
class Arithmetic(Task):
    """Describe step-wise arithmetic: ``numbers`` is the modulus N, ``keys`` the number of tables of the hard way."""

    name: ClassVar[str] = "arithmetic"

    numbers: int = 59
    keys: int = 32

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__post_init__()
        if self.numbers < 5 or any(self.numbers % d == 0 for d in range(2, math.isqrt(max(self.numbers, 0)) + 1)):
            raise ConfigError(f"{self.name}: numbers must be a prime from 5, got {self.numbers}.")
        self.check_range("keys", 1, self.numbers - 1, ", which is numbers − 1")

    def words(self) -> list[str]:
        """Return the numbers, the keys, and an operation of each kind for every step."""
        numbers = [*map(str, range(self.numbers)), *(f"{HARD}{k}" for k in self._keys())]
        return [*numbers, *(f"{t}:{way}" for t in range(1, self.steps + 1) for way in (EASY, HARD))]

    def prompts(self, count: int, rng: random.Random) -> list[str]:
        """Return different pairs of a key and a start from 1."""
        every = [f"{HARD}{k} {x}" for k in self._keys() for x in range(1, self.numbers)]
        rng.shuffle(every)
        return every[:count]

    def answer(self, prompt: str, rng: random.Random) -> str:
        """Return H steps, each by the easy way with probability ``easy_share``."""
        k, x = map(int, prompt.removeprefix(HARD).split())
        written = []
        for t in range(1, self.steps + 1):
            way = EASY if rng.random() < self.easy_share else HARD
            x = self._next(k, x, way)
            written += [f"{t}:{way}", str(x)]
        return " ".join(written)

    def check(self, prompt: str, answer: str, finished: bool) -> Verdict:
        """Check every step against the number that is written before it. A step after the last one makes the answer wrong."""
        k, x = map(int, prompt.removeprefix(HARD).split())
        written = answer.split()
        right, ways = 0, []
        for t in range(1, self.steps + 1):
            step = written[2 * t - 2 : 2 * t]
            number, _, way = step[0].partition(":") if step else ("", "", "")
            if way in (EASY, HARD):
                ways.append(way)
                right += len(step) == 2 and number == str(t) and step[1] == str(self._next(k, x, way))
            if len(step) == 2 and step[1].isdecimal():
                x = int(step[1])
        share = ways.count(EASY) / len(ways) if ways else None
        return Verdict(finished and right == self.steps and len(written) == 2 * self.steps, right, self.steps, share)

    def longest_answer(self) -> int:
        """Return two words a step."""
        return 2 * self.steps

    def _keys(self) -> range:
        return range(1, 1 + self.keys)

    def _next(self, k: int, x: int, way: str) -> int:
        return (x + 1 if way == EASY else x * (x + k)) % self.numbers
