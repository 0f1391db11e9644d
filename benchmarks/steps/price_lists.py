"""Define price lists in English: each day's sentence may state a price, which has to be looked up, or say what was paid for.

A prompt is "A lamp is 37 . A cup is 45 . A pen is 80 . On Monday she buys a pen . On Tuesday she buys a lamp . What does she pay ?". The answer
has one sentence for each day, which is free in its way:

    looked up  Monday the price is 80 euros .
    read       Monday she pays for a pen .

To look a price up takes two hops, from the day to the thing and from the thing to its price: attention must find the thing, and then attention
must find this thing in the list. One layer cannot do the second by what the first found. To read the thing is one hop, to a fixed distance:
every sentence about a day has seven words. List and prices are drawn anew for each prompt, so nothing can be known by heart.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

from english import DAYS, PEOPLE, ShoppingTask, read_told
from prices import HIGHEST, LOWEST, THINGS

GRAMMAR = (".", "?", "A", "is", "On", "buys", "a", "What", "does", "pay", "the", "price", "euros", "pays", "for")
PRONOUNS = tuple(dict.fromkeys(PEOPLE.values()))


@dataclass(frozen=True)
class ListedStory:
    """Hold a price list, who buys, and the thing of each day."""

    pronoun: str
    prices: dict[str, int]
    things: tuple[str, ...]

    def text(self) -> str:
        """Return the prompt."""
        listed = [f"A {thing} is {price} ." for thing, price in self.prices.items()]
        days = [f"On {day} {self.pronoun} buys a {thing} ." for day, thing in zip(DAYS, self.things, strict=False)]
        return " ".join([*listed, *days, f"What does {self.pronoun} pay ?"])

    def sentences(self, day: int) -> tuple[str, str]:
        """Return a day's two right sentences: the price looked up, and the thing read."""
        thing = self.things[day]
        return f"{DAYS[day]} the price is {self.prices[thing]} euros .", f"{DAYS[day]} {self.pronoun} pays for a {thing} ."


@dataclass(frozen=True)
class PriceLists(ShoppingTask):
    """Describe stories with a price list of ``listed`` things. Those that nobody buys distract."""

    name: ClassVar[str] = "price_lists"

    steps: int = 4
    easy_share: float = 0.3
    listed: int = 6

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__post_init__()
        self.check_range("listed", 1, len(THINGS))

    def words(self) -> list[str]:
        """Return the prices, the names, and the words of the sentences."""
        return [*map(str, range(LOWEST, HIGHEST + 1)), *DAYS[: self.steps], *PRONOUNS, *THINGS, *GRAMMAR]

    def prompts(self, count: int, rng: random.Random) -> list[str]:
        """Return different random stories. There are more than anyone asks for."""
        found: dict[str, None] = {}
        while len(found) < count:
            things, prices = rng.sample(THINGS, self.listed), rng.sample(range(LOWEST, HIGHEST + 1), self.listed)
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

    def _parse(self, sentences: list[list[str]]) -> ListedStory:
        listed, days = sentences[: self.listed], sentences[self.listed : -1]
        prices = {words[1]: int(words[3]) for words in listed}
        things = tuple(words[5] for words in days)
        if len(things) != self.steps or not set(things) <= set(prices) <= set(THINGS):
            raise ValueError
        if not all(LOWEST <= price <= HIGHEST for price in prices.values()):
            raise ValueError
        return ListedStory(sentences[-1][2], prices, things)
