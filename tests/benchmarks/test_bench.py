"""The fast bench at a miniature size: models from a few lines of text, its recipe on them, and one row a method and seed."""

import importlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tdistill.cache.read import read_manifest
from tdistill.experiment.experiment import SPLITS, Experiment
from tdistill.experiment.graph import execute, is_complete
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.rollouts import rollouts
from tdistill.runtime.files import read_jsonl, write_json, write_jsonl

FAST = Path(__file__).parents[2] / "benchmarks" / "fast"
# The settings of World 0 are no recipe: it has no language models.
RECIPES = sorted(p for p in FAST.parent.glob("**/*.yaml") if p.name != "ring.yaml")
WORDS = ("the", "king", "shall", "speak", "of", "rivers", "and", "old", "towns", "where", "a", "green", "bird", "sings", "before", "winter")
TINY_STEPS = [f"{stage}.arguments.{key}=1" for stage in ("sft", "train") for key in ("max_steps", "eval_steps", "save_steps")]


@pytest.fixture(scope="module")
def scripts():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(FAST)
    patch.syspath_prepend(FAST.parent)
    import bench
    import make_models

    yield make_models, bench
    others = ("exposure", "futures", "gain_estimates", "lookahead", "turns", "tasks", "temperatures", "pooled_methods")
    for name in ("make_models", "bench", "bench_rows", "taken_rollouts", *others):
        sys.modules.pop(name, None)
    patch.undo()


def text(sentences: int, gap: str, rng: random.Random) -> str:
    return gap.join(" ".join(rng.choices(WORDS, k=14)).capitalize() + "." for _ in range(sentences))


@pytest.fixture(scope="module")
def models(scripts, tmp_path_factory) -> Path:
    make_models, _ = scripts
    rng, size = random.Random(0), make_models.Size(16, 1, 2, 1e-3)
    texts = {
        "tinyshakespeare": text(120, "\n\n", rng),
        "wikitext2_valid": " = A heading = \n" + text(60, "\n", rng),
        "wikitext2_test": text(40, "\n", rng),
    }
    plan = make_models.Plan(vocab=300, shortest=8, longest=120, batch=4, teacher=size, start=size, train=8, valid=4, test=2)
    directory = tmp_path_factory.mktemp("fast")
    make_models.make(texts, plan, directory / "models")
    return directory


def overrides(directory: Path) -> list[str]:
    models = directory / "models"
    files = [f"data.{split}={models / split}.jsonl" for split in ("train", "valid", "test")]
    names = [f"teacher.teacher_model_name_or_path={models / 'teacher'}", f"student.student_model_name_or_path={models / 'start'}"]
    small = ["data.max_prompt_length=150", "rollout.max_completion_length=4", f"output_dir={directory / 'run'}"]
    return [*files, *names, *small, *TINY_STEPS]


def test_models_and_prompts_are_written_with_what_they_measure(models):
    lines = {split: (models / "models" / f"{split}.jsonl").read_text().splitlines() for split in ("train", "valid", "test")}
    assert {split: len(found) for split, found in lines.items()} == {"train": 8, "valid": 4, "test": 4}
    records = [json.loads(line) for found in lines.values() for line in found]
    assert all(r["prompt"].strip() and r["completion"].strip() for r in records)
    assert not {*lines["train"]} & {*lines["valid"]}
    info = json.loads((models / "models" / "models.json").read_text())
    assert info["teacher"]["perplexity"] > 1.0
    assert info["start"]["parameters"] > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_of_a_bench_can_be_run(path):
    recipe = open_recipe(path)
    assert len(recipe.train.baselines) > 5
    assert all(method.arguments["learning_rate"] > 0 for method in recipe.train.methods().values())


@pytest.mark.parametrize(
    ("recipe", "rows", "options"),
    [
        ("fast/recipe.yaml", "fast.jsonl.xz", ["--split", "test"]),
        ("fast/bd_ablations.yaml", "fast-bd-ablations.jsonl.xz", []),
        ("fast/ac_ablations.yaml", "fast-ac-ablations.jsonl.xz", []),
        ("fast/bd_ablations.yaml", "fast-bd-p-1.0.jsonl.xz", ["--only", "bd_tail_10", "train.teacher_top_p=1.0"]),
        ("real/recipe.yaml", "real-long.jsonl.xz", ["--split", "test", "--only", "jsd_long,ac_uniform_gamma_09_long", "train.seeds=[19,20]"]),
    ],
)
def test_the_recipe_of_the_published_rows_has_nothing_left_to_train(scripts, recipe, rows, options):
    _, bench = scripts
    path = FAST.parents[1] / "docs" / "results" / rows
    asked = bench.Bench(bench.parser("").parse_intermixed_args([str(FAST.parent / recipe), *options, "--rows", str(path)]))
    kept = bench.kept_rows(path, asked.units(), asked.split)
    assert {unit.key for unit in asked.units()} == kept.keys()


@pytest.fixture(scope="module")
def measured(scripts, models, tmp_path_factory):
    """One student that the bench trained: what picks it, the bench's own command, and its row."""
    rows = tmp_path_factory.mktemp("measured") / "rows.jsonl"
    picked = [str(FAST / "recipe.yaml"), *overrides(models), "train.seeds=[5]", "--only", "reverse_kl"]
    command = ["bench.py", *picked, "--workers", "1", "--rows", str(rows)]
    call(scripts[1], *command)
    (row,) = read_jsonl(rows)
    return picked, command, row


def call(script, *argv: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(argv))
        (importlib.import_module(script) if isinstance(script, str) else script).main()


def test_one_method_and_seed_gives_one_row(measured, models):
    _, _, row = measured
    assert (models / "run" / "students" / row["student"] / "artefact.json").exists()
    assert len(list((models / "run" / "answers").iterdir())) == 1  # what has no row is not measured
    assert (row["method"], row["seed"], row["system"], row["split"]) == ("reverse_kl", 5, "reverse_kl-5", "valid")
    assert len(row["sft_fingerprint"]) == 16
    assert row["training_seconds"] > 0.0
    assert (row["objective"], row["on_policy"]) == ("reverse_kl", None)
    for metric in ("forward_kl", "reverse_kl", "teacher_nll", "entropy", "mean_length"):
        assert len(row["scores"][metric]) == 4, metric
        assert row["metrics"][metric]["mean"] == pytest.approx(np.mean(list(row["scores"][metric].values())), rel=1e-3)


def test_a_new_row_has_the_columns_of_the_published_ones(measured):
    published = read_jsonl(FAST.parents[1] / "docs" / "results" / "fast.jsonl.xz")[0]
    assert measured[2].keys() == published.keys() | {"student"}


def test_a_student_by_position_in_its_own_text(measured, tmp_path):
    picked, _, row = measured
    for _ in range(2):  # what is there is kept
        call("exposure", "exposure.py", *picked, "--length", "6", "--rows", str(tmp_path / "rows.jsonl"))
        found = {r["system"]: r for r in read_jsonl(tmp_path / "rows.jsonl")}
        assert found.keys() == {"teacher", "sft", "reverse_kl-5"}
        assert len(read_jsonl(tmp_path / "rows.jsonl")) == 3
    assert sum(found["teacher"]["kl"]) == pytest.approx(0.0, abs=1e-4)
    student = found["reverse_kl-5"]
    assert max(student["count"]) == 4
    assert sum(student["nll"]) / sum(student["count"]) == pytest.approx(np.mean(list(row["scores"]["teacher_nll"].values())), rel=0.2)


def test_a_student_that_is_equal_to_its_teacher_has_nothing_to_gain_by_looking_ahead(measured, tmp_path):
    rows = tmp_path / "rows.jsonl"
    call("lookahead", "lookahead.py", *measured[0], "--states", "2", "--actions", "2", "--samples", "4", "--rows", str(rows))
    (found,) = read_jsonl(rows)
    assert (found["student"], found["states"]) == ("reverse_kl-5", 2)
    assert 0.0 < found["mass_of_actions"] < 1.0
    # One step at the warm-up's rate of 0 leaves the start as it is, which has the teacher's size and seed.
    assert found["kl"]["mean"] == pytest.approx(0.0, abs=1e-6)
    gains = {g["return"]: g["gain"]["mean"] for g in found["gains"] if g["gamma"] == 1.0}
    assert gains["divergence"] == pytest.approx(0.0, abs=1e-6)


def test_single_states_are_played_out_once(scripts, measured, tmp_path):
    rows = tmp_path / "rows.jsonl.xz"
    own = ["turns.py", *measured[0], "--states", "3", "--actions", "2", "--samples", "4", "--rows", str(rows)]
    call("turns", *own)
    found = read_jsonl(rows)
    assert [(row["system"], row["number"]) for row in found] == [(name, i) for name in ("sft", "reverse_kl-5") for i in range(3)]
    for row in found:
        assert np.shape(row["divergence"]["1"]) == np.shape(row["length"]) == (2, 4)
        # The student is equal to its teacher, see above.
        assert np.abs(row["divergence"]["1"]).max() == pytest.approx(0.0, abs=1e-4)
        assert row["teacher_entropy"] == pytest.approx(row["student_entropy"], abs=1e-4)
        assert np.max(row["length"]) <= row["left"] - 1 == 3 - row["position"]
        assert sum(row["probs"]) == pytest.approx(1.0, abs=1e-3)
    write_jsonl(rows, [found[1] | {"length": "kept"}, *found[3:]])
    call("turns", *own)
    again = {(row["system"], row["number"]): row for row in read_jsonl(rows)}
    assert again["sft", 1] == found[1] | {"length": "kept"}
    assert {key: row for key, row in again.items() if key != ("sft", 1)} == {(r["system"], r["number"]): r for r in found if r is not found[1]}
    with pytest.raises(scripts[1].ConfigError, match="holds rows of other settings"):
        call("turns", *own, "--samples", "6")
    with pytest.raises(scripts[1].ConfigError, match="at least 4, 2 and 1"):
        call("turns", *own, "--samples", "3")


def test_a_student_on_a_task(scripts, measured, tmp_path):
    (tmp_path / "dolly").mkdir()
    records = [{"instruction": f"the king {word}", "input": "", "output": "shall speak of rivers"} for word in WORDS[:3]]
    write_jsonl(tmp_path / "dolly" / "test.jsonl", records)
    picked, _, row = measured
    rows = tmp_path / "rows.jsonl"
    own = ["tasks.py", *picked, "--tasks", "dolly", "--data-dir", str(tmp_path), "--rows", str(rows)]
    for _ in range(2):  # what is there is kept
        call("tasks", *own, "--limit", "2")
        found = {r["system"]: r for r in read_jsonl(rows)}
        assert len(read_jsonl(rows)) == len(found)
        assert found.keys() == {"teacher", "sft", "reverse_kl-5"}
    for metric in ("teacher_nll", "rouge_l", "mean_length"):
        assert len(found["reverse_kl-5"]["scores"][metric]) == 2, metric
    assert (found["reverse_kl-5"]["method"], found["reverse_kl-5"]["sft_fingerprint"]) == ("reverse_kl", row["sft_fingerprint"])
    assert "method" not in found["teacher"]
    write_jsonl(rows, [found["teacher"]])
    with pytest.raises(scripts[1].ConfigError, match="holds rows of other settings"):
        call("tasks", *own, "--limit", "3")


def test_a_student_at_several_temperatures(scripts, measured, tmp_path):
    picked, _, row = measured
    rows = tmp_path / "rows.jsonl"
    for asked in ("0.5", "0.5,1"):  # another one costs itself alone
        call("temperatures", "temperatures.py", *picked, "--temperatures", asked, "--rows", str(rows))
    found = {(r["system"], r["temperature"]): r for r in read_jsonl(rows)}
    assert list(found) == [(name, t) for name in ("reverse_kl-5", "sft", "teacher") for t in (0.5, 1.0)]
    assert len(read_jsonl(rows)) == len(found)
    assert {k: r.get("seed") for k, r in found.items()} == {k: 5 if k[0] == "reverse_kl-5" else None for k in found}
    for metric in ("teacher_nll", "entropy", "mean_length"):
        assert found["reverse_kl-5", 1.0]["scores"][metric] == row["scores"][metric], metric
    spread = [np.mean(list(found["teacher", t]["scores"]["entropy"].values())) for t in (0.5, 1.0)]
    assert spread[0] < spread[1]
    with pytest.raises(scripts[1].ConfigError, match="holds rows of other settings"):
        call("temperatures", "temperatures.py", *picked, "--temperatures", "2", "evaluation.top_p=0.5", "--rows", str(rows))


def test_what_is_there_is_kept_and_the_same_name_with_other_settings_is_refused(scripts, measured, monkeypatch):
    (_, bench), (_, command, _) = scripts, measured
    monkeypatch.setattr(bench, "train_and_measure", lambda *_: pytest.fail("nothing is left to train"))
    call(bench, *command)
    for changed, message in (
        ("train.baselines.reverse_kl.support=proj", "trained by other settings"),
        ("train.arguments.warmup_steps=2", "trained by other settings"),
        ("train.teacher_top_p=0.5", "recipe with other settings"),
        ("evaluation.top_p=0.5", "recipe with other settings"),
    ):
        with pytest.raises(bench.ConfigError, match=message):
            call(bench, *command, changed)
    with pytest.raises(bench.ConfigError, match="rows of the valid prompts"):
        call(bench, *command, "--split", "test")
    with pytest.raises(bench.ConfigError, match="has no reverse_lk. It has sft_continued"):
        call(bench, *command, "--only", "reverse_lk")


@pytest.mark.parametrize(
    ("method", "value", "belongs"),
    [
        ("jsd", {"detach": True, "learning_rate": 0.5}, True),
        ("bd_tail_10", {"warmup_steps": 3, "target_tau": 0.5}, True),
        ("csil", {"target_tau": 0.5}, True),
        ("csil", {"detach": True}, False),
        ("actor_critic", {"detach": True}, False),
        ("bd_tail_10_learned", {"learning_rate": 0.5}, False),
        ("ac_gamma_09", {"detach": False}, False),
    ],
)
def test_a_row_is_compared_by_the_settings_of_the_value_head_that_its_objective_reads(scripts, tmp_path, method, value, belongs):
    _, bench = scripts
    rows, published = tmp_path / "rows.jsonl", read_jsonl(FAST.parents[1] / "docs" / "results" / "fast.jsonl.xz")
    row = next(row for row in published if (row["method"], row["seed"]) == (method, 0))
    write_jsonl(rows, [row | {"value": row["value"] | value}])
    asked = bench.Bench(
        bench.parser("").parse_intermixed_args([str(FAST / "recipe.yaml"), "--split", "test", "--only", method, "--rows", str(rows)])
    )
    if belongs:
        assert bench.kept_rows(rows, asked.units(), asked.split).keys() == {(method, 0)}
        return
    with pytest.raises(bench.ConfigError, match=f"{method}-0 of .* was trained by other settings"):
        bench.kept_rows(rows, asked.units(), asked.split)


def test_a_student_that_diverges_has_a_row_that_says_so(scripts, models, tmp_path):
    _, bench = scripts
    rows = tmp_path / "rows.jsonl"
    longer = [f"train.arguments.{key}=4" for key in ("max_steps", "eval_steps", "save_steps")]
    wild = [*overrides(models), "train.seeds=[5]", *longer, "train.arguments.learning_rate=1e30"]
    for _ in range(2):  # it is not tried again
        call(bench, "bench.py", str(FAST / "recipe.yaml"), *wild, "--only", "jsd", "--workers", "1", "--rows", str(rows))
        (row,) = read_jsonl(rows)
        assert "became nan" in row["diverged"]
        assert row["scores"] == {}
        rows.unlink()


@pytest.fixture
def with_rollouts(measured, models, tmp_path):
    """A folder with a recipe and the roll-outs that another machine made by it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(FAST / "recipe.yaml", folder)
    made = Experiment(open_recipe(FAST / "recipe.yaml", overrides(models)))
    for split in SPLITS:
        shutil.copytree(rollouts(made)[split].directory, folder / "rollouts" / split, ignore=shutil.ignore_patterns("artefact.json", ".*"))
    write_json(folder / "rollouts" / "provenance.json", {"recipe": made.recipe.model_dump()})
    return folder


def test_roll_outs_that_came_along_are_taken_where_the_recipe_would_make_the_same(scripts, models, with_rollouts, tmp_path, monkeypatch):
    _, bench = scripts

    def asked(name: str, *changed: str) -> Experiment:
        found = Experiment(open_recipe(with_rollouts / "recipe.yaml", [*overrides(models), f"output_dir={tmp_path / name}", *changed]))
        execute(found, "models")
        bench.take_rollouts(found, with_rollouts / "rollouts")
        return found

    monkeypatch.setattr("tdistill.experiment.rollouts.load_teacher", lambda *_: pytest.fail("the roll-outs are there"))
    same = asked("same")
    assert is_complete(same, "rollout")
    for split in SPLITS:
        taken = rollouts(same)[split]
        assert same.notes(taken)["checksum"] == read_manifest(with_rollouts / "rollouts" / split).checksum
    # The batch size is no part of the content; p, the answers' length and the teacher's dtype are.
    assert is_complete(asked("batches", "rollout.batch_size=3"), "rollout")
    for changed in ("rollout.teacher_top_p=0.5", "rollout.max_completion_length=5", "teacher.dtype=bfloat16"):
        assert not is_complete(asked(changed, changed), "rollout"), changed


def test_rows_of_another_machine_count(scripts, models, measured, tmp_path, capsys):
    _, bench = scripts
    rows, rates = tmp_path / "rows.jsonl", tmp_path / "rates.json"
    given = [str(FAST / "recipe.yaml"), *overrides(models), "train.seeds=[5]", "--workers", "1", "--rows", str(rows), "--rates", "1e-3"]
    call(bench, "bench.py", *given, "--only", "sft_continued")
    (kept,) = read_jsonl(rows)
    write_jsonl(rows, [kept | {"sft_fingerprint": "another"}])
    shutil.rmtree(models / "run" / "students" / kept["student"])
    capsys.readouterr()
    call(bench, "bench.py", *given, "--only", "sft_continued,reverse_kl", "--choose", str(rates))
    found = {r["method"]: r for r in read_jsonl(rows)}
    assert found.keys() == {"sft_continued@0.001", "reverse_kl@0.001"}
    assert found["sft_continued@0.001"]["scores"] == kept["scores"]
    assert not (models / "run" / "students" / kept["student"]).exists()
    assert found["reverse_kl@0.001"]["arguments"]["learning_rate"] == 1e-3
    assert "Students of 2 starts" in capsys.readouterr().err
    assert json.loads(rates.read_text()) == {"sft_continued": 1e-3, "reverse_kl": 1e-3}


@pytest.mark.slow
def test_a_bench_that_is_killed_goes_on_where_it_was(models, tmp_path):
    out, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    command = [sys.executable, str(FAST.parent / "bench.py"), str(FAST / "recipe.yaml"), *overrides(models), f"output_dir={out}"]
    command += ["train.seeds=[5,6]", "--only", "reverse_kl,jsd", "--workers", "2", "--rows", str(rows)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("students/*/artefact.json"))) < 3:  # the SFT student and two more
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.1)
    running.kill()
    running.wait()
    before = {p: p.stat().st_mtime_ns for p in out.glob("students/*/artefact.json")}
    assert not rows.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [(r["method"], r["seed"]) for r in read_jsonl(rows)] == [("jsd", 5), ("jsd", 6), ("reverse_kl", 5), ("reverse_kl", 6)]
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert "| `jsd` | 2 |" in done.stdout


def test_students_of_another_start_are_marked(scripts):
    def row(method, seed, start):
        scores = {"teacher_nll": {f"p{i}": float(seed + i) for i in range(3)}}
        common = {"objective": "jsd(beta=0.5)", "arguments": {"learning_rate": 1e-4}, "scores": scores}
        return {"method": method, "seed": seed, "sft_fingerprint": start} | common

    rows = [row("jsd", 17, "a"), row("jsd", 18, "a"), row("forward_kl", 17, "a"), row("forward_kl", 18, "b")]
    lines = importlib.import_module("pooled_methods").starts_table(rows).splitlines()[2:]
    assert lines == ["| `forward_kl` | 1 | 18 |"]


def test_the_results_page_says_what_its_rows_say():
    found = subprocess.run([sys.executable, FAST.parent / "results.py", "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"run python benchmarks/results.py: {found.stdout}{found.stderr}"
