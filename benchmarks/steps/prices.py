"""Define shopping stories in English: each day's sentence may state a price, which has to be known, or say what was paid for.

A prompt is "Anna is in Oslo . Monday she buys a lamp . Tuesday she buys a chair . What does she pay ?". The answer has one sentence for each
day, which is free in its way:

    recalled  Monday the price is 37 .
    read      Monday she pays for a lamp .

A price depends on the city and the thing, and follows no rule: it has to be known by heart. What was paid for stands in the story.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

from english import DAYS, PEOPLE, ShoppingTask, read_told

CITIES = [
    "Athens",
    "Basel",
    "Bath",
    "Bergen",
    "Berlin",
    "Bonn",
    "Brest",
    "Cadiz",
    "Cologne",
    "Cork",
    "Delft",
    "Dover",
    "Dublin",
    "Essen",
    "Geneva",
    "Ghent",
    "Graz",
    "Hamburg",
    "Kiel",
    "Krakow",
    "Leeds",
    "Lille",
    "Linz",
    "Lisbon",
    "London",
    "Lyon",
    "Madrid",
    "Malmo",
    "Milan",
    "Nantes",
    "Naples",
    "Nice",
    "Oslo",
    "Paris",
    "Porto",
    "Prague",
    "Riga",
    "Rome",
    "Sofia",
    "Turin",
    "Vienna",
    "Warsaw",
    "York",
    "Zagreb",
]
THINGS = [
    "ball",
    "basket",
    "bell",
    "belt",
    "book",
    "bottle",
    "bowl",
    "box",
    "brush",
    "cake",
    "candle",
    "chair",
    "clock",
    "coat",
    "comb",
    "cup",
    "desk",
    "doll",
    "drum",
    "fan",
    "flute",
    "fork",
    "glove",
    "hammer",
    "hat",
    "kettle",
    "key",
    "kite",
    "knife",
    "lamp",
    "map",
    "mirror",
    "pan",
    "pen",
    "pipe",
    "plate",
    "pot",
    "rope",
    "rug",
    "scarf",
    "shirt",
    "spoon",
    "table",
    "tent",
]
GRAMMAR = (".", "?", "is", "in", "buys", "a", "What", "does", "pay", "the", "price", "pays", "for")
LOWEST, HIGHEST = 10, 99
_CLERK = random.Random(0)
PRICES = {(city, thing): _CLERK.randint(LOWEST, HIGHEST) for city in CITIES for thing in THINGS}


@dataclass(frozen=True)
class Story:
    """Hold who buys what where, day by day."""

    person: str
    city: str
    things: tuple[str, ...]

    @property
    def pronoun(self) -> str:
        """Return he or she."""
        return PEOPLE[self.person]

    def text(self) -> str:
        """Return the prompt."""
        days = [f"{day} {self.pronoun} buys a {thing} ." for day, thing in zip(DAYS, self.things, strict=False)]
        return " ".join([f"{self.person} is in {self.city} .", *days, f"What does {self.pronoun} pay ?"])

    def sentences(self, day: int) -> tuple[str, str]:
        """Return a day's two right sentences: the price recalled, and the thing read."""
        thing = self.things[day]
        return f"{DAYS[day]} the price is {PRICES[self.city, thing]} .", f"{DAYS[day]} {self.pronoun} pays for a {thing} ."


@dataclass(frozen=True)
class Prices(ShoppingTask):
    """Describe shopping stories: there are ``cities`` times ``things`` prices to know."""

    name: ClassVar[str] = "prices"

    steps: int = 4
    easy_share: float = 0.3
    cities: int = 40
    things: int = 40

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__post_init__()
        self.check_range("cities", 1, len(CITIES))
        self.check_range("things", 1, len(THINGS))

    def words(self) -> list[str]:
        """Return the prices, the names, and the words of the sentences."""
        names = [*DAYS[: self.steps], *PEOPLE, *dict.fromkeys(PEOPLE.values()), *CITIES[: self.cities], *THINGS[: self.things]]
        return [*map(str, range(LOWEST, HIGHEST + 1)), *names, *GRAMMAR]

    def prompts(self, count: int, rng: random.Random) -> list[str]:
        """Return different random stories, or all if there are fewer."""
        found: dict[str, None] = {}
        people, cities, things = list(PEOPLE), CITIES[: self.cities], THINGS[: self.things]
        while len(found) < min(count, len(people) * len(cities) * len(things) ** self.steps):
            found[Story(rng.choice(people), rng.choice(cities), tuple(rng.choices(things, k=self.steps))).text()] = None
        return list(found)

    def read(self, prompt: str) -> Story:
        """Return the story that a prompt tells.

        Raises:
            DataError: the prompt is not a story of this task.
        """
        return read_told(prompt, self._parse, f"a shopping story of {self.steps} days")

    def longest_answer(self) -> int:
        """Return the number of words of an answer in which every thing is read."""
        return 7 * self.steps

    def _parse(self, sentences: list[list[str]]) -> Story:
        start, *days, _ = sentences
        story = Story(start[0], start[3], tuple(day[4] for day in days))
        if len(days) != self.steps or story.city not in CITIES[: self.cities] or not set(story.things) <= set(THINGS[: self.things]):
            raise ValueError
        return story
