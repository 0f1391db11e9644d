"""Define word problems in English: a number of things changes day by day, and each day's number may be given at once or worked out.

A prompt is "Tom has 37 apples . Monday he buys 48 . Tuesday he sells 19 . How many apples has he ?". The answer has one sentence for each
day and a last one, "So Tom has 66 apples .". A day's sentence is free in its way:

    direct  Monday he has 85 .
    worked  Monday 7 and 8 make 15 , 30 and 40 make 70 , 70 and 15 make 85 ; he has 85 .

Every number is one word. The direct way is one table of thousands of sums. A part of the worked way is a line of a small table. But sums
follow a rule, and a small transformer finds it: neither way is hard for it (``prices.py`` has a hard way without a rule). A
subtraction that needs a ten takes it in its first part: for 85 and 19, "15 less 9 leaves 6 , 70 less 10 leaves 60 , 60 and 6 make 66".
"""

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from english import DAYS, PEOPLE, DailyTask, read_told, sentences_of
from task import Verdict

THINGS = ("apples", "books", "coins", "eggs", "nuts", "pens", "shells", "stamps")
GAINS, LOSSES = ("buys", "finds", "gets", "makes"), ("sells", "loses", "drops", "uses")
GRAMMAR = (".", "?", ",", ";", "has", "How", "many", "and", "make", "less", "leaves", "So")
LEAST = 11  # number of things that come or go in a day


@dataclass(frozen=True)
class Problem:
    """Hold a story: who has how many of what, and the verb and the amount of each day."""

    person: str
    thing: str
    start: int
    changes: tuple[tuple[str, int], ...]

    @property
    def pronoun(self) -> str:
        """Return he or she."""
        return PEOPLE[self.person]

    def text(self) -> str:
        """Return the prompt."""
        days = [f"{day} {self.pronoun} {verb} {amount} ." for day, (verb, amount) in zip(DAYS, self.changes, strict=False)]
        return " ".join([f"{self.person} has {self.start} {self.thing} .", *days, f"How many {self.thing} has {self.pronoun} ?"])

    def sentences(self, day: int, number: int) -> tuple[str, str]:
        """Return a day's two right sentences, direct and worked, for the number of things of the day before."""
        end = f"{self.pronoun} has {after(number, *self.changes[day])} ."
        return f"{DAYS[day]} {end}", f"{DAYS[day]} {worked(number, *self.changes[day])} ; {end}"

    def last_sentence(self, number: int) -> str:
        """Return the sentence that ends the answer."""
        return f"So {self.person} has {number} {self.thing} ."


def after(number: int, verb: str, amount: int) -> int:
    """Return the number of things after a change."""
    return number + amount if verb in GAINS else number - amount


def worked(number: int, verb: str, amount: int) -> str:
    """Return the parts in which a sum or difference is worked out: the units, the tens, both together."""
    (tens, units), (more_tens, more_units) = (divmod(n, 10) for n in (number, amount))
    if verb in GAINS:
        low, high = units + more_units, 10 * (tens + more_tens)
        parts = [f"{units} and {more_units} make {low}", f"{10 * tens} and {10 * more_tens} make {high}"]
    else:
        borrowed = int(units < more_units)
        units, tens = units + 10 * borrowed, tens - borrowed
        low, high = units - more_units, 10 * (tens - more_tens)
        parts = [f"{units} less {more_units} leaves {low}", f"{10 * tens} less {10 * more_tens} leaves {high}"]
    return " , ".join([*parts, f"{high} and {low} make {high + low}"])


@dataclass(frozen=True)
class WordProblems(DailyTask):
    """Describe word problems: ``largest`` is the largest number of things that anyone has, ``most`` the most that come or go in a day."""

    name: ClassVar[str] = "word_problems"

    steps: int = 3
    easy_share: float = 0.3
    largest: int = 99
    most: int = 39

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__post_init__()
        self.check_range("largest", 2 * LEAST, 99, ", so that something can come or go")
        self.check_range("most", LEAST, self.largest, ", which is largest")

    def words(self) -> list[str]:
        """Return the numbers, the names, and the words of the sentences."""
        numbers = map(str, range(self.largest + 10))  # the units of a sum are at most 18 and its tens at most ``largest``
        return [*numbers, *DAYS[: self.steps], *PEOPLE, *dict.fromkeys(PEOPLE.values()), *THINGS, *GAINS, *LOSSES, *GRAMMAR]

    def draw(self, rng: random.Random) -> Problem:
        """Return a random problem whose numbers stay between 1 and ``largest``."""
        number = start = rng.randint(1, self.largest)
        changes: list[tuple[str, int]] = []
        for _ in range(self.steps):
            gains, losses = (range(LEAST, min(self.most, room) + 1) for room in (self.largest - number, number - 1))
            verbs, amount = rng.choice([*((GAINS, n) for n in gains), *((LOSSES, n) for n in losses)])
            changes.append((rng.choice(verbs), amount))
            number = after(number, *changes[-1])
        return Problem(rng.choice(list(PEOPLE)), rng.choice(THINGS), start, tuple(changes))

    def prompts(self, count: int, rng: random.Random) -> list[str]:
        """Return different random problems. There are more than anyone asks for."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.draw(rng).text()] = None
        return list(found)

    def answer(self, prompt: str, rng: random.Random) -> str:
        """Return a right answer. Every day is worked out with probability ``easy_share``."""
        problem = self.read(prompt)
        number, found = problem.start, []
        for day, change in enumerate(problem.changes):
            found.append(problem.sentences(day, number)[rng.random() < self.easy_share])
            number = after(number, *change)
        return " ".join([*found, problem.last_sentence(number)])

    def check(self, prompt: str, answer: str, finished: bool) -> Verdict:
        """Check every sentence against the number that is written before it."""
        problem, written = self.read(prompt), sentences_of(answer)
        number, right, ways = problem.start, 0, []
        for day, sentence in enumerate(written[: self.steps]):
            right += sentence in problem.sentences(day, number)
            second = sentence.split()[1:2]
            if second == [problem.pronoun] or (second and second[0].isdecimal()):
                ways.append(second != [problem.pronoun])
            number = stated(sentence, number)
        whole = right == self.steps and written[self.steps :] == [problem.last_sentence(number)]
        return Verdict(finished and whole, right, self.steps, sum(ways) / len(ways) if ways else None)

    def read(self, prompt: str) -> Problem:
        """Return the problem that a prompt states.

        Raises:
            DataError: the prompt is not a problem of this task.
        """
        return read_told(prompt, self._parse, f"a word problem of {self.steps} days")

    def longest_answer(self) -> int:
        """Return the number of words of an answer in which every day is worked out."""
        return 23 * self.steps + 6

    def _parse(self, sentences: list[list[str]]) -> Problem:
        start, *changes, _ = sentences
        if len(changes) != self.steps:
            raise ValueError
        return Problem(start[0], start[3], int(start[2]), tuple((day[2], int(day[3])) for day in changes))


def stated(sentence: str, number: int) -> int:
    """Return the number of things that a sentence ends with, or ``number`` if it ends with none."""
    end = re.search(r" has (\d+) \.$", sentence)
    return int(end[1]) if end else number
