"""The step-wise tasks: problems, checkers, and one tiny run from a teacher trained here to rows."""

import importlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.runtime.errors import ConfigError, TrainingError
from tdistill.runtime.files import read_jsonl

STEPS = Path(__file__).parents[2] / "benchmarks" / "steps"
MODULES = ("task", "english", "arithmetic", "prices", "price_lists", "word_problems", "tasks", "make_models", "check")
SHARED = ("bench", "bench_rows", "pooled_methods", "taken_rollouts", "doc_tables", "small_llama", "told")
SEEDS = st.integers(0, 2**31)
TINY = {"steps": 4, "numbers": 11, "keys": 4}


@pytest.fixture(scope="module")
def steps():
    """The modules of the step tasks; other benches have modules of the same names."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(STEPS.parent)
    patch.syspath_prepend(STEPS)
    for name in (*MODULES, *SHARED):
        sys.modules.pop(name, None)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in (*MODULES, *SHARED):
        sys.modules.pop(name, None)
    patch.undo()


def problem(steps: Any, seed: int, h: int = 5) -> tuple[Any, str, str]:
    """Return a task, one of its problems and a right answer."""
    rng = random.Random(seed)
    task = steps.tasks.task_of("arithmetic", {"steps": h, "numbers": 13, "keys": 6})
    (prompt,) = task.prompts(1, rng)
    return task, prompt, task.answer(prompt, rng)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, h=st.integers(1, 8))
def test_a_right_answer_is_right_whatever_ways_it_takes(steps, seed, h):
    task, prompt, answer = problem(steps, seed, h)
    verdict = task.check(prompt, answer, finished=True)
    assert (verdict.right, verdict.steps_right, verdict.steps) == (True, h, h)
    assert verdict.easy_share == pytest.approx(answer.count("+") / h)
    assert set(f"{prompt} {answer}".split()) <= set(task.words())
    assert len(answer.split()) == task.longest_answer()


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, place=st.integers(0, 4), other=st.integers(1, 12))
def test_a_wrong_result_makes_the_answer_wrong_and_its_own_step_at_least(steps, seed, place, other):
    task, prompt, answer = problem(steps, seed)
    words = answer.split()
    words[2 * place + 1] = str((int(words[2 * place + 1]) + other) % 13)
    verdict = task.check(prompt, " ".join(words), finished=True)
    assert not verdict.right
    assert 3 <= verdict.steps_right <= 4  # the step after it is judged by what was written


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, cut=st.integers(0, 9), extra=st.sampled_from(["6:+ 3", "5:+ 3", "4", "1:*"]))
def test_a_missing_step_an_extra_one_and_a_missing_end_are_wrong(steps, seed, cut, extra):
    task, prompt, answer = problem(steps, seed)
    words = answer.split()
    assert not task.check(prompt, answer, finished=False).right
    assert not task.check(prompt, f"{answer} {extra}", finished=True).right
    assert not task.check(prompt, " ".join(words[:cut] + words[cut + 1 :]), finished=True).right
    assert not task.check(prompt, " ".join(words[:cut]), finished=True).right


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, words=st.lists(st.sampled_from(["1:+", "2:*", "3:-", "+", ":", "7", "12", "<unk>", "*3"]), max_size=12))
def test_any_other_words_are_judged_without_an_error(steps, seed, words):
    task, prompt, answer = problem(steps, seed)
    verdict = task.check(prompt, " ".join(words), finished=True)
    assert verdict.right == (" ".join(words) == answer)
    assert 0 <= verdict.steps_right <= 5
    assert verdict.easy_share is None or 0.0 <= verdict.easy_share <= 1.0


def test_a_step_that_is_out_of_order_is_wrong(steps):
    task, prompt, answer = problem(steps, 1)
    first, second = answer.split()[:2], answer.split()[2:4]
    swapped = " ".join([*second, *first, *answer.split()[4:]])
    assert not task.check(prompt, swapped, finished=True).right


def test_problems_differ_and_the_teacher_takes_the_easy_way_as_often_as_asked(steps):
    rng = random.Random(0)
    task = steps.tasks.task_of("arithmetic", {"steps": 10, "numbers": 13, "keys": 6, "easy_share": 0.2})
    every = task.prompts(10**6, rng)
    assert len(every) == len(set(every)) == 6 * 12
    ways = [task.check(p, task.answer(p, rng), True).easy_share for p in every for _ in range(5)]
    assert sum(ways) / len(ways) == pytest.approx(0.2, abs=0.03)
    assert task.best_reverse_kl() == pytest.approx(10 * 1.6094, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sorting", {}, "no task 'sorting', and so no checker of its answers. There are arithmetic"),
        ("arithmetic", {"step": 3}, "no setting 'step'. It has steps, easy_share, numbers, keys"),
        ("arithmetic", {"steps": "many"}, "steps must be a number of type int, got 'many'"),
        ("arithmetic", {"steps": 0}, "steps must be from 1 to 64, got 0"),
        ("arithmetic", {"easy_share": 1.5}, "easy_share must be from 0 to 1"),
        ("arithmetic", {"numbers": 15}, "numbers must be a prime"),
        ("arithmetic", {"numbers": 13, "keys": 13}, "keys must be from 1 to 12, which is numbers − 1"),
    ],
)
def test_a_task_without_a_checker_and_settings_out_of_range_are_refused(steps, name, given, message):
    with pytest.raises(ConfigError, match=message):
        steps.tasks.task_of(name, given)


def plan(steps: Any, train_steps: int, **changed: Any) -> Any:
    made, size = steps.make_models, importlib.import_module("small_llama").Size
    teacher = size(64, 1, train_steps, 1e-2, positions=32, weight_decay=0.0)
    given = {"teacher": teacher, "start": size(8, 1, 0, 0.0, heads=1, positions=32), "prompts": (32, 4, 4), "sampled": 60, "batch": 64}
    return made.Plan(**given | changed)


@pytest.fixture(scope="module")
def world(steps, tmp_path_factory) -> Path:
    """A task so small that a teacher of 60k parameters learns it in seconds."""
    directory = tmp_path_factory.mktemp("world")
    with pytest.raises(ConfigError, match="has 30 different problems, and 40 are asked for"):
        steps.make_models.make(steps.tasks.task_of("arithmetic", TINY | {"keys": 3}), plan(steps, 1), directory)
    task = steps.tasks.task_of("arithmetic", TINY)
    with pytest.raises(TrainingError, match="of the teacher's own texts are right, and 97% are needed: the same command trains"):
        steps.make_models.make(task, plan(steps, 1), directory)
    assert not (directory / "start").exists()
    info = steps.make_models.make(task, plan(steps, 500), directory)
    assert (info["teacher"]["rounds"], info["teacher"]["right"] >= 0.97) == (2, True)
    return directory


def test_a_finished_world_is_kept_and_other_settings_are_refused(steps, world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*") if p.is_file()}
    steps.make_models.make(steps.tasks.task_of("arithmetic", TINY), plan(steps, 500), world)
    assert {p: p.stat().st_mtime_ns for p in world.rglob("*") if p.is_file()} == before
    lines = [json.loads(line)["prompt"] for split in ("train", "valid", "test") for line in (world / f"{split}.jsonl").open()]
    assert len(lines) == len(set(lines)) == 40
    with pytest.raises(ConfigError, match="holds models of other settings"):
        steps.make_models.make(steps.tasks.task_of("arithmetic", TINY | {"steps": 5}), plan(steps, 500), world)
    with pytest.raises(ConfigError, match="has up to 43 tokens, and the models read 32"):
        steps.make_models.make(steps.tasks.task_of("arithmetic", TINY | {"steps": 20}), plan(steps, 500), world)


def call(script: Any, *argv: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(argv))
        script.main()


def command(world: Path, *more: str) -> list[str]:
    files = [f"data.{split}={world / split}.jsonl" for split in ("train", "valid", "test")]
    names = [f"teacher.teacher_model_name_or_path={world / 'teacher'}", f"student.student_model_name_or_path={world / 'start'}"]
    small = [
        "rollout.max_completion_length=9",
        *(f"{s}.arguments.{k}={v}" for s in ("sft", "train") for k, v in (("max_steps", 4), ("warmup_steps", 1))),
    ]
    return ["check.py", str(STEPS / "arithmetic.yaml"), *files, *names, *small, f"output_dir={world / 'run'}", "--workers", "1", *more]


def test_one_run_of_the_world_gives_rows_that_the_checker_judged(steps, world, tmp_path, capsys, monkeypatch):
    rows, rates = tmp_path / "rows.jsonl", tmp_path / "rates.json"
    asked = command(world, "train.seeds=[3]", "--only", "jsd,rejection", "--rows", str(rows))
    call(steps.check, *asked)
    found = {row["method"]: row for row in read_jsonl(rows)}
    assert found.keys() == {"teacher", "sft", "jsd", "rejection"}
    assert found["teacher"]["metrics"]["right_greedy"]["mean"] > 0.8
    assert found["teacher"]["metrics"]["reverse_kl_text"]["mean"] == pytest.approx(0.0, abs=1e-4)
    assert found["sft"]["metrics"]["reverse_kl_text"]["mean"] > 1.0
    for row in found.values():
        assert len(row["scores"]["right_sampled"]) == 4
        assert all(x in (0.0, 1.0) for x in row["scores"]["right_greedy"].values())
        assert row["task"]["name"] == "arithmetic"
        assert row["best_reverse_kl"] == pytest.approx(4 * 0.6931, rel=1e-3)
    assert found["jsd"]["training_seconds"] > 0
    assert "| `teacher` | 1 |" in capsys.readouterr().out
    monkeypatch.setattr(steps.check, "reference_rows", lambda *_: pytest.fail("they stand in the file"))
    monkeypatch.setattr(importlib.import_module("bench"), "train_and_measure", lambda *_: pytest.fail("nothing is left to train"))
    call(steps.check, *asked)
    monkeypatch.undo()
    tried = command(world, "train.seeds=[3]", "--only", "jsd", "--rows", str(tmp_path / "rates.jsonl"), "--rates", "1e-3,2e-3")
    call(steps.check, *tried, "--choose", str(rates))
    assert json.loads(rates.read_text())["jsd"] in (1e-3, 2e-3)


def test_a_rate_is_chosen_by_right_answers_then_by_right_steps(steps):
    def row(method: str, right: float, share: float, **more: Any) -> dict[str, Any]:
        return {"method": method, "metrics": {"right_greedy": {"mean": right}, "steps_right_sampled": {"mean": share}}, **more}

    rows = [row("a@0.001", 0.5, 0.9), row("a@0.01", 0.5, 0.95), row("b@0.001", 0.2, 0.3), row("b@0.01", 0.1, 0.9)]
    assert steps.check.chosen_rates([*rows, row("a@0.1", 0.9, 1.0, diverged="nan")]) == {"a": 0.01, "b": 0.001}


def test_a_student_that_writes_no_step_has_no_share_of_the_easy_way(steps):
    def scores(right: float, share: dict[str, float]) -> dict[str, Any]:
        one = {"p": right}
        return {"right_greedy": one, "right_sampled": one, "steps_right_sampled": one, "easy_share_sampled": share, "reverse_kl_text": one}

    task = steps.tasks.task_of("arithmetic", TINY)
    silent = steps.check.verdict_scores({"p": task.check("*1 2", "", finished=True)})
    assert silent == {"right": {"p": 0.0}, "steps_right": {"p": 0.0}, "easy_share": {}}
    rows = [{"method": "a", "seed": 0, "scores": scores(0.0, {})}, {"method": "a", "seed": 1, "scores": scores(1.0, {"p": 0.25})}]
    assert "| `a` | 2 | 0.500" in steps.check.summary(rows)
    assert "| 0.250 |" in steps.check.summary(rows)
    assert "| `a` | 1 | 0.000 | 0.000 | 0.000 | – |" in steps.check.summary(rows[:1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("rollout.max_completion_length=4", "has up to 9 tokens, and rollout.max_completion_length is 4"),
        ("evaluation.num_generations=2", "set evaluation.num_generations=1, got 2"),
        ("teacher.teacher_model_name_or_path=/nowhere/teacher", "models.json does not exist, so nothing can check answers"),
    ],
)
def test_a_recipe_whose_answers_cannot_be_checked_is_refused(steps, world, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        call(steps.check, *command(world, changed, "--only", "jsd", "--rows", str(tmp_path / "rows.jsonl")))


def published(steps: Any, name: str, split: str) -> tuple[dict[tuple[str, Any], dict[str, Any]], set[tuple[str, int]]]:
    """Return the published rows of a recipe and its students; rows that were trained by other settings are refused."""
    path = STEPS.parents[1] / "docs" / "results" / f"steps-{name.replace('_', '-')}.jsonl.xz"
    bench = importlib.import_module("bench")
    asked = bench.Bench(bench.parser("").parse_intermixed_args([str(STEPS / f"{name}.yaml"), "--split", split, "--rows", str(path)]))
    return bench.kept_rows(path, asked.units(), asked.split), {unit.key for unit in asked.units()}


def test_every_published_setting_of_the_critic_is_in_its_recipe(steps):
    kept, units = published(steps, "arithmetic_critic", "valid")
    assert {key for key in kept if key[1] is not None} == units - {("distilled", seed) for seed in (100, 101, 102)}
    detached = {key[0] for key, row in kept.items() if key[1] is not None and row["value"]["detach"]}
    assert {"actor_critic_detach", "actor_critic_own_tuned"} <= detached
    assert not {"actor_critic_default", "actor_critic_own_tuned_warm"} & detached


def test_the_published_rows_were_trained_by_the_recipe(steps):
    kept, units = published(steps, "arithmetic", "test")
    students = {key for key in kept if key[1] is not None}
    assert students <= units
    assert {(method, seed) for method in ("actor_critic", "jsd", "rejection") for seed in range(3)} <= students
    assert {("teacher", None), ("sft", None)} <= kept.keys()
    assert all(row["task"] == steps.tasks.task_of("arithmetic", {}).settings() for row in kept.values())


def test_an_error_of_a_script_is_one_line_and_status_2(steps, capsys):
    told = importlib.import_module("told")
    with pytest.raises(SystemExit) as stop, told.script():
        steps.tasks.task_of("sorting", {})
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: There is no task 'sorting'")


def test_a_stopped_script_says_what_is_kept():
    own = "import os, signal, time\nfrom told import script\nwith script():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", own], cwd=STEPS.parent, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM. What is complete is kept" in ended.stderr
    assert "before anything" not in ended.stderr
