"""Define a step task: problems, right answers written in random ways, and an exact checker."""

import dataclasses
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tdistill.runtime.errors import ConfigError


@dataclass(frozen=True)
class Verdict:
    """Hold what the checker says of one answer.

    Args:
        right: every step is right, no step is missing, none is left over, and the text ends.
        steps_right: number of steps that follow from the text before them, at most ``steps``.
        steps: number of steps that the problem asks for.
        easy_share: share of the easy way among the steps whose way can be read; None if there is none.
    """

    right: bool
    steps_right: int
    steps: int
    easy_share: float | None


@dataclass(frozen=True)
class Task(ABC):
    """Describe a task. Its fields are its settings.

    A text is words separated by single spaces, first the prompt and then the answer.
    """

    name: ClassVar[str]

    steps: int = 16
    easy_share: float = 0.5  # how often the teacher takes the easy way

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        self.check_range("steps", 1, 64)
        self.check_range("easy_share", 0, 1)

    def check_range(self, key: str, least: float, most: float, why: str = "") -> None:
        """Check that a setting is between two bounds. ``why`` says in the message where they come from.

        Raises:
            ConfigError: the setting is out of range.
        """
        if not least <= getattr(self, key) <= most:
            raise ConfigError(f"{self.name}: {key} must be from {least} to {most}{why}, got {getattr(self, key)}.")

    @abstractmethod
    def words(self) -> list[str]:
        """Return every word that a text can contain."""

    @abstractmethod
    def prompts(self, count: int, rng: random.Random) -> list[str]:
        """Return ``count`` different problems as prompt texts, or all in random order if there are fewer."""

    @abstractmethod
    def answer(self, prompt: str, rng: random.Random) -> str:
        """Return a right answer, in ways drawn at random. It is what the teacher learns from."""

    @abstractmethod
    def check(self, prompt: str, answer: str, finished: bool) -> Verdict:
        """Check an answer. ``finished`` says that its author ended it."""

    @abstractmethod
    def longest_answer(self) -> int:
        """Return the largest number of words of a right answer. The token that ends it is not counted."""

    def best_reverse_kl(self) -> float | None:
        """Return the reverse KL in nats of a text whose author takes the easy way at every step, without an error; None if it is infinite."""
        return -self.steps * math.log(self.easy_share) if self.easy_share > 0 else None

    def settings(self) -> dict[str, Any]:
        """Return the name and the settings, ready for JSON."""
        return {"name": self.name, **dataclasses.asdict(self)}

    @classmethod
    def made(cls, settings: Mapping[str, str | int | float]) -> Self:
        """Return the task with some settings other than the default; they may be written as text.

        Raises:
            ConfigError: a setting does not exist, is not a number, or is out of range.
        """
        kinds = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        unknown = [key for key in settings if key not in kinds]
        if unknown:
            raise ConfigError(f"{cls.name} has no setting {unknown[0]!r}. It has {', '.join(kinds)}.")
        values = {}
        for key, value in settings.items():
            try:
                values[key] = kinds[key](value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{cls.name}: {key} must be a number of type {kinds[key].__name__}, got {value!r}.") from error
        return cls(**values)


def enough(found: Sequence[str], wanted: int, name: str) -> None:
    """Check that a task has problems for every split.

    Raises:
        ConfigError: it has fewer than are asked for.
    """
    if len(found) < wanted:
        raise ConfigError(f"{name} has {len(found)} different problems, and {wanted} are asked for: ask for fewer, or make the task larger.")
