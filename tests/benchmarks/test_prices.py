"""Prices of shopping stories have to be known, and those of price lists to be looked up."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STEPS)
    from english import sentences_of
    from price_lists import PriceLists
    from prices import CITIES, PRICES, THINGS, Prices

quickly = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)


@quickly
@given(st.builds(Prices, steps=st.integers(1, 7), easy_share=st.just(0.0), cities=st.integers(1, 44), things=st.integers(1, 44)), seeds)
def test_a_stated_price_is_that_of_the_city_and_the_thing_of_the_day(task: Prices, seed: int) -> None:
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    city = prompt.split()[3]
    bought = [sentence.split()[-2] for sentence in sentences_of(prompt)[1:-1]]
    assert [int(sentence.split()[-2]) for sentence in sentences_of(task.answer(prompt, rng))] == [PRICES[city, thing] for thing in bought]


def test_prices_follow_no_rule_of_city_or_thing() -> None:
    """The best guess by city and thing apart, mean of the row plus mean of the column, is no better than the mean of all."""
    grid = {(c, t): float(PRICES[c, t]) for c in CITIES for t in THINGS}
    mean = sum(grid.values()) / len(grid)
    rows = {c: sum(grid[c, t] for t in THINGS) / len(THINGS) - mean for c in CITIES}
    columns = {t: sum(grid[c, t] for c in CITIES) / len(CITIES) - mean for t in THINGS}
    left = sum((x - mean - rows[c] - columns[t]) ** 2 for (c, t), x in grid.items())
    assert left > 0.93 * sum((x - mean) ** 2 for x in grid.values())


def test_there_are_no_more_stories_than_differ() -> None:
    every = Prices(steps=1, cities=2, things=3).prompts(1000, random.Random(0))
    assert len(set(every)) == len(every) == 8 * 2 * 3


lists = st.builds(PriceLists, steps=st.integers(1, 7), listed=st.integers(1, 16))


@quickly
@given(lists, seeds)
def test_a_looked_up_price_is_that_of_the_list_and_the_thing_of_the_day(task: PriceLists, seed: int) -> None:
    (prompt,) = task.prompts(1, random.Random(seed))
    listed, *days, _ = [sentence.split() for sentence in sentences_of(prompt)]
    prices = dict(label.split("-") for label in listed[2:-1])
    assert len(prices) == len(set(prices.values())) == task.listed, "a price stands for one thing"
    for day, words in enumerate(days):
        hard, easy = task.read(prompt).sentences(day)
        assert (hard.split()[5], easy.split()[5]) == (prices[words[5]], words[5])


@quickly
@given(lists, seeds)
def test_the_thing_of_a_day_stands_at_the_same_distance_on_each_day_and_by_each_way(task: PriceLists, seed: int) -> None:
    """So one hop reads it, whatever was written before."""
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    text = [*prompt.split(), *task.answer(prompt, rng).split()]
    first, distance = 2 + task.listed + 1 + 5, 7 * task.steps + 5
    for place in range(first, first + 7 * task.steps, 7):
        thing, stated = text[place], text[place + distance]
        assert stated in (thing, str(task.read(prompt).prices[thing]))


def test_prices_of_a_thing_change_from_list_to_list() -> None:
    """Nothing can be known by heart."""
    task = PriceLists()
    prices = [task.read(p).prices for p in task.prompts(1000, random.Random(0))]
    for thing in THINGS[: task.things]:
        assert len({listed[thing] for listed in prices if thing in listed}) == task.prices
