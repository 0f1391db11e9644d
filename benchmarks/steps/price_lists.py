"""Define price lists in English: each day's sentence may state a price, which has to be looked up, or say what was paid for.

A prompt is "Prices are lamp-37 cup-45 pen-40 . On Monday she buys a pen . On Tuesday she buys a lamp . What does she pay ?". The answer has one
sentence for each day, which is free in its way:

    looked up  Monday the price is just 40 .
    read       Monday she pays for a pen .

To look a price up takes two hops: from the day to the thing, and from this thing to its label in the list. The second one asks for what the
first one found, so it needs a second layer of attention. To read the thing is the first hop alone, and to a fixed distance: every sentence
about a day has seven words, and the thing and the price have the same place. List and prices are drawn anew for each prompt, so nothing can be
known by heart. A label such as lamp-37 is one word, so that no layer is needed to join a thing and its price.
"""

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from english import DAYS, PEOPLE, ShoppingTask, read_told
from prices import LOWEST, THINGS

GRAMMAR = (".", "?", "Prices", "are", "On", "buys", "a", "What", "does", "pay", "the", "price", "is", "just", "pays", "for")
PRONOUNS = tuple(dict.fromkeys(PEOPLE.values()))


@dataclass(frozen=True)
class ListedStory:
    """Hold a price list, who buys, and the thing of each day."""

    pronoun: str
    prices: dict[str, int]
    things: tuple[str, ...]

    def text(self) -> str:
        """Return the prompt."""
        listed = " ".join(map(label, self.prices, self.prices.values()))
        days = [f"On {day} {self.pronoun} buys a {thing} ." for day, thing in zip(DAYS, self.things, strict=False)]
        return " ".join([f"Prices are {listed} .", *days, f"What does {self.pronoun} pay ?"])

    def sentences(self, day: int) -> tuple[str, str]:
        """Return a day's two right sentences: the price looked up, and the thing read."""
        thing = self.things[day]
        return f"{DAYS[day]} the price is just {self.prices[thing]} .", f"{DAYS[day]} {self.pronoun} pays for a {thing} ."


@dataclass(frozen=True)
class PriceLists(ShoppingTask):
    """Describe stories with a price list of ``listed`` of ``things`` things, each at one of ``prices`` prices.

    Listed things that nobody buys distract.
    """

    name: ClassVar[str] = "price_lists"

    steps: int = 4
    easy_share: float = 0.3
    listed: int = 6
    things: int = 16
    prices: int = 16

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__post_init__()
        self.check_range("things", 1, len(THINGS))
        self.check_range("prices", 1, 90)
        self.check_range("listed", 1, min(self.things, self.prices), ", as many as things and as prices")

    def words(self) -> list[str]:
        """Return the prices, the names, the words of the sentences, and a label for every thing and price."""
        labels = [label(thing, price) for thing in self._things() for price in self._prices()]
        return [*map(str, self._prices()), *DAYS[: self.steps], *PRONOUNS, *self._things(), *GRAMMAR, *labels]

    def prompts(self, count: int, rng: random.Random) -> list[str]:
        """Return different random stories, or all if there are fewer."""
        found: dict[str, None] = {}
        lists = math.perm(self.things, self.listed) * math.perm(self.prices, self.listed)
        while len(found) < min(count, len(PRONOUNS) * lists * self.listed**self.steps):
            things, prices = rng.sample(self._things(), self.listed), rng.sample(self._prices(), self.listed)
            listed = dict(zip(things, prices, strict=True))
            found[ListedStory(rng.choice(PRONOUNS), listed, tuple(rng.choices(things, k=self.steps))).text()] = None
        return list(found)

    def read(self, prompt: str) -> ListedStory:
        """Return the story that a prompt tells.

        Raises:
            DataError: the prompt is not a story of this task.
        """
        return read_told(prompt, self._parse, f"a story of {self.steps} days with {self.listed} prices")

    def longest_answer(self) -> int:
        """Return seven words a day."""
        return 7 * self.steps

    def _things(self) -> list[str]:
        return THINGS[: self.things]

    def _prices(self) -> range:
        return range(LOWEST, LOWEST + self.prices)

    def _parse(self, sentences: list[list[str]]) -> ListedStory:
        (_, _, *labels, _), *days, question = sentences
        prices = {thing: int(price) for thing, price in (word.split("-") for word in labels)}
        bought = tuple(words[5] for words in days)
        known = set(bought) <= set(prices) <= set(self._things()) and set(prices.values()) <= set(self._prices())
        if not known or (len(bought), len(prices)) != (self.steps, self.listed):
            raise ValueError
        return ListedStory(question[2], prices, bought)


def label(thing: str, price: int) -> str:
    """Return the word of a price list that says what a thing costs."""
    return f"{thing}-{price}"
