"""Define the tasks in English that tell of one day after another: their words, the readers of their texts, and what they have in common."""

import random
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from task import Task, Verdict

from tdistill.runtime.errors import DataError

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PEOPLE = {"Tom": "he", "Anna": "she", "Ben": "he", "Mary": "she", "Paul": "he", "Lucy": "she", "Sam": "he", "Jane": "she"}


class Told(Protocol):
    """Hold what a prompt tells."""

    def text(self) -> str:
        """Return the prompt."""


T = TypeVar("T", bound=Told)


class Shopping(Told, Protocol):
    """Hold a story in which somebody buys a thing each day."""

    @property
    def pronoun(self) -> str:
        """Return he or she."""

    def sentences(self, day: int) -> tuple[str, str]:
        """Return a day's two right sentences: the price, and the thing."""


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text; the last one may lack its end."""
    found, words = [], []
    for word in text.split():
        words.append(word)
        if word in (".", "?"):
            found.append(" ".join(words))
            words = []
    return [*found, " ".join(words)] if words else found


def read_told(prompt: str, parse: Callable[[list[list[str]]], T], kind: str) -> T:
    """Return what a prompt tells. ``parse`` gets the words of each sentence, and may fail on words of another task.

    Raises:
        DataError: the prompt is not of this kind, since what was read gives another text.
    """
    try:
        found = parse([sentence.split() for sentence in sentences_of(prompt)])
        same = found.text() == prompt
    except (IndexError, KeyError, ValueError):
        same = False
    if not same:
        raise DataError(f"{prompt!r} is not {kind}: let make_models.py write the prompts.")
    return found


@dataclass(frozen=True)
class DailyTask(Task):
    """Describe a task with one step for each day of a week."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__post_init__()
        self.check_range("steps", 1, len(DAYS))


@dataclass(frozen=True)
class ShoppingTask(DailyTask):
    """Describe stories in which each day's sentence either states a price (hard) or says what was paid for (easy)."""

    @abstractmethod
    def read(self, prompt: str) -> Shopping:
        """Return the story that a prompt tells."""

    def answer(self, prompt: str, rng: random.Random) -> str:
        """Return a right answer. Every day's thing is read, and no price stated, with probability ``easy_share``."""
        story = self.read(prompt)
        return " ".join(story.sentences(day)[rng.random() < self.easy_share] for day in range(self.steps))

    def check(self, prompt: str, answer: str, finished: bool) -> Verdict:
        """Check every sentence against the story and the prices. The way of a sentence is that of its second word."""
        story, written = self.read(prompt), sentences_of(answer)
        days = list(zip(range(self.steps), written, strict=False))
        right = sum(sentence in story.sentences(day) for day, sentence in days)
        seconds = [sentence.split()[1:2] for _, sentence in days]
        ways = [second == [story.pronoun] for second in seconds if second in (["the"], [story.pronoun])]
        whole = right == self.steps == len(written)
        return Verdict(finished and whole, right, self.steps, sum(ways) / len(ways) if ways else None)
