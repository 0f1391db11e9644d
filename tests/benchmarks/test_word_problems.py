"""Word problems have one right number each day, two right sentences for it, and a checker that finds every error."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.runtime.errors import ConfigError, DataError

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STEPS)
    from word_problems import DAYS, WordProblems, after, sentences_of

PART = re.compile(r"(\d+) (and|less) (\d+) (?:make|leaves) (\d+)")
tasks = st.builds(
    WordProblems, steps=st.integers(1, 7), easy_share=st.sampled_from([0.0, 0.3, 1.0]), largest=st.integers(22, 99), most=st.integers(11, 22)
)
seeds = st.integers(0, 10**6)


def drawn(task: WordProblems, seed: int) -> tuple[str, str, random.Random]:
    """Return a problem, a right answer to it, and the random numbers after them."""
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    return prompt, task.answer(prompt, rng), rng


@given(tasks, seeds)
def test_an_answer_of_the_task_is_right_and_its_ways_are_counted(task: WordProblems, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    verdict = task.check(prompt, answer, finished=True)
    assert verdict.right
    assert verdict.steps_right == verdict.steps == task.steps
    assert verdict.easy_share == sum(";" in sentence for sentence in sentences_of(answer)) / task.steps
    if task.easy_share in (0.0, 1.0):
        assert verdict.easy_share == task.easy_share


@given(tasks, seeds)
def test_every_part_that_is_worked_out_is_true_and_small(task: WordProblems, seed: int) -> None:
    prompt, answer, _ = drawn(WordProblems(task.steps, 1.0, task.largest, task.most), seed)
    number = int(prompt.split()[2])
    story = sentences_of(prompt)[1:-1]
    for sentence, told in zip(sentences_of(answer), story, strict=False):
        parts = [(int(a), sign, int(b), int(c)) for a, sign, b, c in PART.findall(sentence)]
        assert all(c == (a + b if sign == "and" else a - b) and c >= 0 for a, sign, b, c in parts)
        units, tens, both = parts
        assert units[0] <= 19
        assert units[2] <= 9
        assert [n % 10 for n in (tens[0], tens[2], tens[3])] == [0, 0, 0]
        assert (both[0], both[2]) == (tens[3], units[3])
        amount = int(told.split()[3])
        assert (units[0] + tens[0], units[2] + tens[2]) == (number, amount)
        number = both[3]
        assert 1 <= number <= task.largest
        assert sentence.endswith(f"has {number} .")


@given(tasks, seeds)
def test_an_answer_with_any_other_word_is_wrong(task: WordProblems, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    words = answer.split()
    place = rng.randrange(len(words))
    words[place] = rng.choice([w for w in task.words() if w != words[place]])
    assert not task.check(prompt, " ".join(words), finished=True).right


@given(tasks, seeds)
def test_a_missing_sentence_an_extra_one_or_a_missing_end_makes_an_answer_wrong(task: WordProblems, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    sentences = sentences_of(answer)
    place = rng.randrange(len(sentences))
    assert not task.check(prompt, answer, finished=False).right
    assert not task.check(prompt, " ".join(sentences[:place] + sentences[place + 1 :]), finished=True).right
    assert not task.check(prompt, " ".join([*sentences[: place + 1], *sentences[place:]]), finished=True).right
    assert not task.check(prompt, answer.removesuffix(" ."), finished=True).right
    assert not task.check(prompt, "", finished=True).right


@given(st.integers(1, 6), seeds)
def test_a_wrong_number_costs_one_step_and_the_next_steps_are_judged_from_it(day: int, seed: int) -> None:
    task = WordProblems(steps=7, easy_share=0.0)
    prompt, _, _ = drawn(task, seed)
    problem, sentences = task.read(prompt), []
    number = problem.start
    for t, change in enumerate(problem.changes):
        number = after(number, *change) + (t == day)
        sentences.append(f"{DAYS[t]} {problem.pronoun} has {number} .")
    answer = " ".join([*sentences, f"So {problem.person} has {number} {problem.thing} ."])
    verdict = task.check(prompt, answer, finished=True)
    assert verdict.steps_right == task.steps - 1
    assert not verdict.right


@given(tasks, seeds)
def test_a_text_has_known_words_alone_and_fits_into_the_longest_answer(task: WordProblems, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    assert len(set(task.words())) == len(task.words())
    assert set(prompt.split()) | set(answer.split()) <= set(task.words())
    assert len(answer.split()) <= task.longest_answer()
    assert (len(answer.split()) == task.longest_answer()) == (task.check(prompt, answer, finished=True).easy_share == 1.0)


@settings(max_examples=5)
@given(seeds)
def test_problems_differ_and_a_longer_list_begins_with_the_shorter_one(seed: int) -> None:
    task = WordProblems()
    many = task.prompts(50, random.Random(seed))
    assert len(set(many)) == 50
    assert task.prompts(20, random.Random(seed)) == many[:20]


@pytest.mark.parametrize(
    "wrong", [{"steps": 8}, {"steps": 0}, {"largest": 100}, {"largest": 21}, {"most": 10}, {"most": 90, "largest": 80}, {"easy_share": 1.1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"word_problems: {next(iter(wrong))} must be .*{next(iter(wrong.values()))}"):
        WordProblems.made(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "Tom has 3 apples .",
        "Tom has 3 apples . How many apples has he ?",
        "Zoe has 3 apples . Monday she buys 20 . How many apples has she ?",
    ],
)
def test_a_prompt_of_no_problem_is_refused(wrong: str) -> None:
    with pytest.raises(DataError, match="is not a word problem of 1 days"):
        WordProblems(steps=1).check(wrong, "Monday he has 3 .", finished=True)
