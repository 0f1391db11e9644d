"""Every task in English has two right sentences for each day, a checker that finds every error, and students that are made and checked."""

import random
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
    from english import DailyTask, sentences_of
    from price_lists import PriceLists
    from prices import Prices
    from word_problems import WordProblems

SCRIPTS = ("make_models", "check", "tasks", "bench", "bench_rows", "taken_rollouts", "pooled_methods", "small_llama", "doc_tables", "told")
days, shares = st.integers(1, 7), st.sampled_from([0.0, 0.3, 1.0])
shopping = st.one_of(
    st.builds(Prices, steps=days, easy_share=shares, cities=st.integers(1, 44), things=st.integers(1, 44)),
    st.builds(PriceLists, steps=days, easy_share=shares, listed=st.integers(1, 9), things=st.integers(9, 44), prices=st.integers(9, 90)),
)
word_problems = st.builds(WordProblems, steps=days, easy_share=shares, largest=st.integers(22, 99), most=st.integers(11, 22))
tasks = st.one_of(shopping, word_problems)
seeds = st.integers(0, 10**6)
quickly = settings(max_examples=50, deadline=None)
EASY_WORD = {"prices": " pays for a ", "price_lists": " pays for a ", "word_problems": " ; "}  # stands once in an easy sentence


def drawn(task: DailyTask, seed: int) -> tuple[str, str, random.Random]:
    """Return a problem, a right answer to it, and the random numbers after them."""
    rng = random.Random(seed)
    (prompt,) = task.prompts(1, rng)
    return prompt, task.answer(prompt, rng), rng


def with_another_word(task: DailyTask, answer: str, rng: random.Random) -> str:
    """Return an answer in which one word is any other."""
    words = answer.split()
    place = rng.randrange(len(words))
    words[place] = rng.choice([w for w in task.words() if w != words[place]])
    return " ".join(words)


@quickly
@given(tasks, seeds)
def test_an_answer_of_the_task_is_right_and_its_ways_are_counted(task: DailyTask, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    verdict = task.check(prompt, answer, finished=True)
    assert verdict.right
    assert verdict.steps_right == verdict.steps == task.steps
    assert verdict.easy_share == answer.count(EASY_WORD[task.name]) / task.steps
    if task.easy_share in (0.0, 1.0):
        assert verdict.easy_share == task.easy_share


@quickly
@given(tasks, seeds)
def test_an_answer_with_any_other_word_is_wrong(task: DailyTask, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    assert not task.check(prompt, with_another_word(task, answer, rng), finished=True).right


@quickly
@given(shopping, seeds)
def test_another_word_in_a_shopping_story_makes_its_own_day_wrong(task: DailyTask, seed: int) -> None:
    prompt, answer, rng = drawn(task, seed)
    assert task.check(prompt, with_another_word(task, answer, rng), finished=True).steps_right < task.steps


@quickly
@given(tasks, seeds)
def test_a_missing_sentence_an_extra_one_or_a_missing_end_makes_an_answer_wrong(task: DailyTask, seed: int) -> None:
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
def test_a_text_has_known_words_alone_and_fits_into_the_longest_answer(task: DailyTask, seed: int) -> None:
    prompt, answer, _ = drawn(task, seed)
    assert len(set(task.words())) == len(task.words())
    assert set(prompt.split()) | set(answer.split()) <= set(task.words())
    assert len(answer.split()) <= task.longest_answer()
    if task.check(prompt, answer, finished=True).easy_share == 1.0:
        assert len(answer.split()) == task.longest_answer()


@quickly
@given(st.sampled_from([Prices, PriceLists, WordProblems]), seeds)
def test_problems_differ_and_a_longer_list_begins_with_the_shorter_one(kind: type[DailyTask], seed: int) -> None:
    many = kind().prompts(50, random.Random(seed))
    assert len(set(many)) == 50
    assert kind().prompts(20, random.Random(seed)) == many[:20]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((kind, wrong) for kind in (Prices, PriceLists, WordProblems) for wrong in ({"steps": 8}, {"steps": 0}, {"easy_share": 1.1})),
        *((Prices, wrong) for wrong in ({"cities": 45}, {"things": 0})),
        *((PriceLists, wrong) for wrong in ({"listed": 0}, {"listed": 17}, {"things": 45}, {"prices": 91})),
        *((WordProblems, wrong) for wrong in ({"largest": 100}, {"largest": 21}, {"most": 10}, {"most": 90, "largest": 80})),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[DailyTask], wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"{kind.name}: {next(iter(wrong))} must be from .*{next(iter(wrong.values()))}"):
        kind.made(wrong)


@pytest.mark.parametrize(
    ("task", "kind", "wrong"),
    [
        *((task, kind, "") for task, kind in ((Prices(1), "shopping story"), (PriceLists(1), "story"), (WordProblems(1), "word problem"))),
        (Prices(1), "shopping story", "Anna is in Oslo ."),
        (Prices(1), "shopping story", "Anna is in Oslo . What does she pay ?"),
        (Prices(1), "shopping story", "Anna is in Paradise . Monday she buys a lamp . What does she pay ?"),
        (Prices(1), "shopping story", "Anna is in Oslo . Monday he buys a lamp . What does she pay ?"),
        (PriceLists(1, listed=1), "story", "Prices are lamp-17 ."),
        (PriceLists(1, listed=1), "story", "Prices are lamp-17 . What does she pay ?"),
        (PriceLists(1, listed=1), "story", "Prices are lamp-17 . On Monday she buys a cup . What does she pay ?"),
        (PriceLists(1, listed=1), "story", "Prices are lamp-17 . On Monday he buys a lamp . What does she pay ?"),
        (PriceLists(1, listed=1), "story", "Prices are lamp-7 . On Monday she buys a lamp . What does she pay ?"),
        (PriceLists(1, listed=1), "story", "Prices are goat-17 . On Monday she buys a goat . What does she pay ?"),
        (PriceLists(1, listed=2), "story", "Prices are lamp-17 lamp-18 . On Monday she buys a lamp . What does she pay ?"),
        (WordProblems(1), "word problem", "Tom has 3 apples ."),
        (WordProblems(1), "word problem", "Tom has 3 apples . How many apples has he ?"),
        (WordProblems(1), "word problem", "Zoe has 3 apples . Monday she buys 20 . How many apples has she ?"),
    ],
)
def test_a_prompt_of_another_kind_is_refused(task: DailyTask, kind: str, wrong: str) -> None:
    with pytest.raises(DataError, match=f"is not a {kind} of 1 days"):
        task.check(wrong, "Monday he has 3 .", finished=True)


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


def test_a_teacher_of_another_share_goes_on_from_the_weights_of_its_origin(scripts, tmp_path) -> None:
    make_models, check = scripts
    size = make_models.Size(16, 1, 2, 1e-9)
    plan = make_models.Plan(size, size, prompts=(8, 4, 4), sampled=8, answers_only=True)
    make_models.make(check.task_of("price_lists", {}), plan, tmp_path / "first")
    going_on = make_models.Plan(size, size, prompts=(8, 4, 4), sampled=8, answers_only=True, seed=5, origin=tmp_path / "first")
    info = make_models.make(check.task_of("price_lists", {"easy_share": 0.1}), going_on, tmp_path / "second")
    assert info["teacher"]["origin"] == str(tmp_path / "first")
    first, second = (
        make_models.load_model(make_models.find_model(str(tmp_path / name / "teacher")), "float32").state_dict() for name in ("first", "second")
    )
    assert all((first[key] - second[key]).abs().max() < 1e-6 for key in first)


@pytest.mark.parametrize("name", ["word_problems", "prices", "price_lists"])
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
