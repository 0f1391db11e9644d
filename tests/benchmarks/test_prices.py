"""Shopping stories have two right sentences for each day, and a checker that knows every price."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.runtime.errors import ConfigError, DataError

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STEPS)
    from prices import CITIES, PRICES, THINGS, Prices, sentences_of

tasks = st.builds(
    Prices, steps=st.integers(1, 7), easy_share=st.sampled_from([0.0, 0.3, 1.0]), cities=st.integers(1, 44), things=st.integers(1, 44)
)
seeds = st.integers(0, 10**6)
quickly = settings(max_examples=30, deadline=None)


def drawn(task: Prices, seed: int) -> tuple[str, str, random.Random]:
    """Return a story, a right answer to it, and the random numbers after them."""
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    return prompt, task.answer(prompt, rng), rng


@quickly
@given(tasks, seeds)
def test_an_answer_of_the_task_is_right_and_its_ways_are_counted(task: Prices, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    verdict = task.check(prompt, answer, finished=True)
    assert verdict.right
    assert verdict.steps_right == verdict.steps == task.steps
    assert verdict.easy_share == answer.count(" pays for a ") / task.steps
    if task.easy_share in (0.0, 1.0):
        assert verdict.easy_share == task.easy_share


@quickly
@given(tasks, seeds)
def test_a_stated_price_is_that_of_the_city_and_the_thing_of_the_day(task: Prices, seed: int) -> None:
    prompt, answer, _ = drawn(Prices(task.steps, 0.0, task.cities, task.things), seed)
    city = prompt.split()[3]
    bought = [sentence.split()[-2] for sentence in sentences_of(prompt)[1:-1]]
    assert [int(sentence.split()[-2]) for sentence in sentences_of(answer)] == [PRICES[city, thing] for thing in bought]


@quickly
@given(tasks, seeds)
def test_an_answer_with_any_other_word_is_wrong(task: Prices, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    words = answer.split()
    place = rng.randrange(len(words))
    words[place] = rng.choice([w for w in task.words() if w != words[place]])
    verdict = task.check(prompt, " ".join(words), finished=True)
    assert not verdict.right
    assert verdict.steps_right < task.steps


@quickly
@given(tasks, seeds)
def test_a_missing_sentence_an_extra_one_or_a_missing_end_makes_an_answer_wrong(task: Prices, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    sentences = sentences_of(answer)
    place = rng.randrange(len(sentences))
    assert not task.check(prompt, answer, finished=False).right
    assert not task.check(prompt, " ".join(sentences[:place] + sentences[place + 1 :]), finished=True).right
    assert not task.check(prompt, " ".join([*sentences[: place + 1], *sentences[place:]]), finished=True).right
    assert not task.check(prompt, answer.removesuffix(" ."), finished=True).right
    assert not task.check(prompt, "", finished=True).right
    assert task.check(prompt, "", finished=True).easy_share is None


@quickly
@given(tasks, seeds)
def test_a_text_has_known_words_alone_and_fits_into_the_longest_answer(task: Prices, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    assert len(set(task.words())) == len(task.words())
    assert set(prompt.split()) | set(answer.split()) <= set(task.words())
    assert len(answer.split()) <= task.longest_answer()
    assert (len(answer.split()) == task.longest_answer()) == (task.check(prompt, answer, finished=True).easy_share == 1.0)


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


@pytest.mark.parametrize("wrong", [{"steps": 8}, {"steps": 0}, {"cities": 45}, {"things": 0}, {"easy_share": 1.1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"prices: {next(iter(wrong))} must be .*{next(iter(wrong.values()))}"):
        Prices.made(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "Anna is in Oslo .",
        "Anna is in Oslo . What does she pay ?",
        "Anna is in Paradise . Monday she buys a lamp . What does she pay ?",
        "Anna is in Oslo . Monday he buys a lamp . What does she pay ?",
    ],
)
def test_a_prompt_of_no_story_is_refused(wrong: str) -> None:
    with pytest.raises(DataError, match="is not a shopping story of 1 days"):
        Prices(steps=1).check(wrong, "Monday the price is 37 .", finished=True)
