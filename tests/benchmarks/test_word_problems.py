"""Word problems have one right number each day, two right sentences for it, and a checker that finds every error."""

import random
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.runtime.errors import ConfigError, DataError
from tdistill.runtime.files import read_jsonl

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(STEPS)
    from word_problems import DAYS, WordProblems, after, sentences_of

SCRIPTS = ("make_models", "check", "tasks", "bench", "bench_rows", "taken_rollouts", "pooled_methods", "small_llama", "doc_tables", "told")
PART = re.compile(r"(\d+) (and|less) (\d+) (?:make|leaves) (\d+)")
tasks = st.builds(
    WordProblems, steps=st.integers(1, 7), easy_share=st.sampled_from([0.0, 0.3, 1.0]), largest=st.integers(22, 99), most=st.integers(11, 22)
)
seeds = st.integers(0, 10**6)
quickly = settings(max_examples=30, deadline=None)


def drawn(task: WordProblems, seed: int) -> tuple[str, str, random.Random]:
    """Return a problem, a right answer to it, and the random numbers after them."""
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    return prompt, task.answer(prompt, rng), rng


@quickly
@given(tasks, seeds)
def test_an_answer_of_the_task_is_right_and_its_ways_are_counted(task: WordProblems, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    verdict = task.check(prompt, answer, finished=True)
    assert verdict.right
    assert verdict.steps_right == verdict.steps == task.steps
    assert verdict.easy_share == sum(";" in sentence for sentence in sentences_of(answer)) / task.steps
    if task.easy_share in (0.0, 1.0):
        assert verdict.easy_share == task.easy_share


@quickly
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


@quickly
@given(tasks, seeds)
def test_an_answer_with_any_other_word_is_wrong(task: WordProblems, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    words = answer.split()
    place = rng.randrange(len(words))
    words[place] = rng.choice([w for w in task.words() if w != words[place]])
    assert not task.check(prompt, " ".join(words), finished=True).right


@quickly
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


@quickly
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


@quickly
@given(tasks, seeds)
def test_a_text_has_known_words_alone_and_fits_into_the_longest_answer(task: WordProblems, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    assert len(set(task.words())) == len(task.words())
    assert set(prompt.split()) | set(answer.split()) <= set(task.words())
    assert len(answer.split()) <= task.longest_answer()
    assert (len(answer.split()) == task.longest_answer()) == (task.check(prompt, answer, finished=True).easy_share == 1.0)


@quickly
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


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as own:
        own.syspath_prepend(STEPS)
        import check
        import make_models

        own.setattr(make_models, "LEAST_RIGHT", 0.0)  # a teacher of seconds
        yield make_models, check
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def test_a_teacher_learns_answers_of_problems_beside_those_of_the_students(scripts) -> None:
    make_models, _ = scripts
    task, rng = WordProblems(steps=2), random.Random(0)
    plan = make_models.Plan(batch=3, answers_only=True)
    pairs = make_models.texts(task, task.prompts(2, rng), plan, rng)
    tokenizer = make_models.word_tokenizer(task.words())
    ids, mask, labels = sys.modules["small_llama"].batch_of(pairs, tokenizer)
    for (prompt, answer), row, known, learnt in zip(pairs, ids, mask, labels, strict=True):
        assert task.check(prompt, answer, finished=True).right
        assert tokenizer.decode(row[known == 1]) == f"{prompt} {answer} <eos>"
        assert tokenizer.decode(row[learnt >= 0]) == f"{answer} <eos>"
        assert (learnt[learnt >= 0] == row[learnt >= 0]).all()


@pytest.mark.parametrize("name", ["word_problems", "prices"])
def test_students_of_the_recipe_are_made_and_checked(name, scripts, tmp_path, monkeypatch) -> None:
    make_models, check = scripts
    monkeypatch.chdir(tmp_path)
    home = f"runs/steps/{name}"
    plan = make_models.Plan(
        make_models.Size(16, 1, 2, 1e-3), make_models.Size(16, 1, 0, 0.0), prompts=(8, 4, 4), lessons=8, sampled=8, answers_only=True
    )
    info = make_models.make(check.task_of(name, {}), plan, Path(home))
    assert info["teacher"]["rounds"] == 1
    short = [f"{stage}.arguments.max_steps=2" for stage in ("sft", "train")]
    rows = tmp_path / "rows.jsonl"
    command = ["check", str(STEPS / f"{name}.yaml"), "--rows", str(rows), "--only", "jsd,actor_critic_own", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", [*command, f"output_dir={tmp_path}/run", "train.seeds=[0]", *short])
    check.main()
    found = {row["method"]: row for row in read_jsonl(rows)}
    assert found.keys() == {"teacher", "sft", "jsd", "actor_critic_own"}
    for row in found.values():
        assert row["task"]["name"] == name
        assert len(row["scores"]["right_greedy"]) == 4
        assert set(row["scores"]["right_sampled"].values()) <= {0.0, 1.0}
