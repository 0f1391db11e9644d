"""Word problems have one right number each day, which is stated or worked out in small true parts."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STEPS)
    from english import DAYS, sentences_of
    from word_problems import WordProblems, after

PART = re.compile(r"(\d+) (and|less) (\d+) (?:make|leaves) (\d+)")
worked_out = st.builds(WordProblems, steps=st.integers(1, 7), easy_share=st.just(1.0), largest=st.integers(22, 99), most=st.integers(11, 22))
seeds = st.integers(0, 10**6)
quickly = settings(max_examples=30, deadline=None)


@quickly
@given(worked_out, seeds)
def test_every_part_that_is_worked_out_is_true_and_small(task: WordProblems, seed: int) -> None:
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    number = int(prompt.split()[2])
    story = sentences_of(prompt)[1:-1]
    for sentence, told in zip(sentences_of(task.answer(prompt, rng)), story, strict=False):
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


@quickly
@given(st.integers(1, 6), seeds)
def test_a_wrong_number_costs_one_step_and_the_next_steps_are_judged_from_it(day: int, seed: int) -> None:
    task = WordProblems(steps=7, easy_share=0.0)
    (prompt,) = task.prompts(1, random.Random(seed))
    problem, sentences = task.read(prompt), []
    number = problem.start
    for t, change in enumerate(problem.changes):
        number = after(number, *change) + (t == day)
        sentences.append(f"{DAYS[t]} {problem.pronoun} has {number} .")
    answer = " ".join([*sentences, f"So {problem.person} has {number} {problem.thing} ."])
    verdict = task.check(prompt, answer, finished=True)
    assert verdict.steps_right == task.steps - 1
    assert not verdict.right
