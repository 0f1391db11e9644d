"""The fast bench at a miniature size: models from a few lines of text, its recipe on them, and one row a method and seed."""

import importlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tdistill.objectives import bind
from tdistill.recipe.schema import TrainConfig
from tdistill.runtime.files import read_jsonl, write_jsonl

FAST = Path(__file__).parents[2] / "benchmarks" / "fast"
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
    for name in ("make_models", "bench", "objectives", "exposure", "tasks", "temperatures", "pooled_methods"):
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


@pytest.mark.parametrize("path", sorted(FAST.parent.glob("*/*s.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_method_of_a_bench_binds(path):
    methods = TrainConfig(objective={"name": "nll"}, baselines=yaml.safe_load(path.read_text())).baselines
    for method in methods.values():
        bind(method.objective)
    if path.with_suffix(".json").exists():
        assert json.loads(path.with_suffix(".json").read_text()).keys() == methods.keys()


@pytest.fixture(scope="module")
def measured(scripts, models, tmp_path_factory):
    """One student that the bench trained: what picks it, the bench's own command, and its row."""
    rows = tmp_path_factory.mktemp("measured") / "rows.jsonl"
    picked = [str(FAST), *overrides(models), "--only", "reverse_kl", "--seeds", "5"]
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
    evaluated = (models / "run").glob("objectives/*/evaluated/*/scores/*.json")
    assert [p.stem for p in evaluated] == ["reverse_kl-5"]  # what has no row is not evaluated
    assert (row["method"], row["seed"], row["split"]) == ("reverse_kl", 5, "valid")
    assert len(row["sft_fingerprint"]) == 16
    assert row["training_seconds"] > 0.0
    for metric in ("forward_kl", "reverse_kl", "teacher_nll", "entropy", "mean_length"):
        assert len(row["scores"][metric]) == 4, metric


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


def test_what_is_there_is_kept_and_the_same_name_with_other_settings_is_refused(scripts, models, measured, monkeypatch, tmp_path):
    (_, bench), (_, command, _) = scripts, measured
    monkeypatch.setattr(bench, "start", lambda *_: pytest.fail("nothing is left to train"))
    call(bench, *command)
    other = tmp_path / "methods.yaml"
    other.write_text("reverse_kl: {name: reverse_kl, support: proj}\n")
    with pytest.raises(bench.ConfigError, match="trained by other settings"):
        call(bench, *command, "--methods", str(other.absolute()))
    # Nor is it taken for the same where it has no scores yet.
    own = ["objectives.py", str(FAST / "recipe.yaml"), *overrides(models), "--methods", str(other), "--seeds", "5", "--split", "test"]
    with pytest.raises(bench.ConfigError, match="was trained by reverse_kl, and"):
        call(bench.objectives, *own)


@pytest.mark.slow
def test_rows_of_another_machine_count_and_so_do_roll_outs_that_came_along(scripts, models, monkeypatch, tmp_path, capsys):
    _, bench = scripts
    # A bench folder with roll-outs in it, as another machine would have left them, and the rows of one of two methods.
    folder, made = tmp_path / "mine", bench.Run(bench.open_recipe(FAST / "recipe.yaml", overrides(models)))
    folder.mkdir()
    for stage in ("models", "rollout"):
        made.execute(stage)
    shutil.copytree(made.directory("rollout"), folder / "rollout" / made.key("rollout"))
    shutil.copy(FAST / "recipe.yaml", folder)
    (folder / "methods.yaml").write_text("sft_continued: {name: nll}\nreverse_kl: {name: reverse_kl}\n")
    rows = tmp_path / "rows.jsonl"
    given = [*overrides(models), f"output_dir={tmp_path / 'run'}"]
    argv = ["bench.py", str(folder), *given, "--seeds", "5", "--workers", "1", "--rows", str(rows), "--choose", str(tmp_path / "rates.json")]
    argv += ["--rates", "1e-3"]
    monkeypatch.setattr(sys, "argv", [*argv, "--only", "sft_continued"])
    bench.main()
    assert (tmp_path / "run" / "rollout" / made.key("rollout")).is_dir()
    assert "rollout: complete, skipped" in next((tmp_path / "run").glob("objectives/*/seed-5.log")).read_text()

    # Elsewhere: nothing but the rows. The other method is trained, both are compared and written.
    (kept,) = read_jsonl(rows)
    write_jsonl(rows, [kept | {"sft_fingerprint": "another"}])
    shutil.rmtree(tmp_path / "run")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    found = {r["method"]: r for r in read_jsonl(rows)}
    assert found.keys() == {"sft_continued@0.001", "reverse_kl@0.001"}
    assert found["sft_continued@0.001"]["scores"] == kept["scores"]
    assert not list((tmp_path / "run").glob("objectives/*/sft_continued*"))
    assert "Students of 2 starts" in capsys.readouterr().err
    assert json.loads((tmp_path / "rates.json").read_text()) == {"sft_continued": 1e-3, "reverse_kl": 1e-3}

    for changed, message in (
        (["--split", "test"], "holds rows of the valid prompts"),
        (["train.teacher_top_p=0.5"], "recipe with other settings"),
        (["--methods", "others.yaml"], "trained by other settings"),
    ):
        (folder / "others.yaml").write_text("sft_continued: {name: forward_kl}\n")
        monkeypatch.setattr(sys, "argv", [*argv, *changed])
        with pytest.raises(bench.ConfigError, match=message):
            bench.main()


def test_seeds_are_numbers_and_ranges(scripts):
    assert scripts[1]._seeds("0-2,7") == [0, 1, 2, 7]


def test_students_of_another_start_are_marked(scripts):
    def row(method, seed, start):
        scores = {"teacher_nll": {f"p{i}": float(seed + i) for i in range(3)}}
        common = {"objective": "jsd(beta=0.5)", "arguments": {"learning_rate": 1e-4}, "scores": scores}
        return {"method": method, "seed": seed, "sft_fingerprint": start} | common

    rows = [row("jsd", 17, "a"), row("jsd", 18, "a"), row("forward_kl", 17, "a"), row("forward_kl", 18, "b")]
    table = importlib.import_module("pooled_methods").methods_table(rows, "jsd", ["teacher_nll"])
    seeds = {line.split(" | ")[0]: line.split(" | ")[3] for line in table.splitlines()[2:]}
    assert seeds == {"| `jsd`": "2", "| `forward_kl`": "2 (1†)"}


def test_the_results_page_says_what_its_rows_say():
    found = subprocess.run([sys.executable, FAST.parent / "results.py", "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"run python benchmarks/results.py: {found.stdout}{found.stderr}"
