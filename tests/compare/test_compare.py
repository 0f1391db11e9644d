"""`tdistill compare` on two tiny runs that differ by their seed, and on copies of them that were altered."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import command, tiny_recipe_dict
from places import altered, checksum, titled
from transformers import TrainerControl, TrainerState, TrainingArguments

from tdistill.compare.comparing import compare
from tdistill.compare.data import METRICS, labels
from tdistill.runtime.files import read_jsonl
from tdistill.statistics.bootstrap import hierarchical_bootstrap
from tdistill.training.clock import Clock

SEEDS = (3, 4)


def refused(capsys: pytest.CaptureFixture, *argv: Any) -> str:
    capsys.readouterr()
    assert command("compare", *argv) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> list[Path]:
    directory = tmp_path_factory.mktemp("compared")
    recipe, outputs = directory / "recipe.yaml", [directory / f"seed-{seed}" for seed in SEEDS]
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, directory)))
    for seed, output in zip(SEEDS, outputs, strict=True):
        assert command("run", recipe, f"seed={seed}", f"output_dir={output}") == 0
    return outputs


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "out"
    assert command("compare", *runs, "--output", output) == 0
    return output


def copied(run: Path, to: Path, change: Callable[[dict[str, Any]], Any] = lambda notes: None) -> Path:
    """Copy a run without models and roll-outs, and change what its evaluation notes."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("*.safetensors", "*.parquet"))
    altered(titled(to, "evaluation"), lambda record: change(record["notes"]))
    return to


def of_kind(page: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(page / "compare.jsonl") if row["kind"] == kind]


def scores(run: Path, name: str, metric: str) -> dict[str, float]:
    """Read a metric of a system, answers' and divergences' alike, without what is undefined."""
    files = [titled(run, f"{kind} of {name}") / "scores.json" for kind in ("answers", "divergences")]
    found = {k: v for path in files for k, v in json.loads(path.read_text()).items()}
    return {k: v for k, v in found.get(metric, {}).items() if not np.isnan(v)}


def test_quality_is_what_the_files_say(runs: list[Path], page: Path) -> None:
    rows = {row["method"]: row for row in of_kind(page, "method")}
    assert list(rows) == ["teacher", "start", "sft", "sft_continued", "distilled"]
    for name, row in rows.items():
        assert row["seeds"] == list(SEEDS)
        for metric in METRICS:
            one, other = (scores(run, name, metric) for run in runs)
            shared = sorted(one.keys() & other.keys())
            assert row["metrics"][metric]["n"] == len(shared)
            if len(shared) < 2:  # tiny models often write one word
                continue
            x = np.array([[values[p] for p in shared] for values in (one, other)])
            assert row["metrics"][metric]["mean"] == pytest.approx(x.mean())
            rest = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
            parts = x.mean(1).var(ddof=1) / 2, x.mean(0).var(ddof=1) / len(shared), np.square(rest).sum() / (len(shared) - 1) / x.size
            assert row["metrics"][metric]["stderr"] ** 2 == pytest.approx(max(parts[0] + parts[1] - parts[2], *parts[:2]))


def test_of_students_that_differ_by_the_seed_of_their_roll_outs_alone_one_counts_and_it_is_said(runs: list[Path], tmp_path: Path) -> None:
    def trained_with_seed_3(notes: dict[str, Any]) -> None:
        for system in notes["systems"]:
            if system["name"] == "distilled":
                system["seed"] = 3

    other = copied(runs[1], tmp_path / "other", trained_with_seed_3)
    found = compare([runs[0], other])
    (distilled,) = (m for m in found.methods if m.label == "distilled")
    assert [s.run for s in distilled.students] == [runs[0]]
    assert any(note.startswith("Made several times") and note.endswith(": distilled (seed 3).") for note in found.notes)


def test_costs_are_what_the_log_says(runs: list[Path], page: Path) -> None:
    rows = [row for row in of_kind(page, "student") if row["name"] in ("sft_continued", "distilled")]
    for row in rows:
        log = json.loads((titled(Path(row["run"]), row["name"], "students") / "log_history.json").read_text())
        timed = [e for e in log["history"] if "seconds" in e]
        (best,) = (e for e in timed if e["step"] == log["best_step"] and "eval_loss" in e)
        assert row["best"] == {"seconds": best["seconds"], "tokens": best["tokens"], "steps": log["best_step"]}
        assert row["total"] == {"seconds": timed[-1]["seconds"], "tokens": timed[-1]["tokens"], "steps": timed[-1]["step"]}
        assert [v["step"] for v in row["validations"]] == [e["step"] for e in timed if "eval_loss" in e]
    costs = {method["method"]: method["best"] for method in of_kind(page, "method")}
    assert costs["distilled"]["seconds"] == pytest.approx(np.mean([row["best"]["seconds"] for row in rows if row["name"] == "distilled"]))
    assert (len(rows), costs["teacher"]) == (4, {"seconds": None, "tokens": None, "steps": None})


def test_differences_are_the_bootstraps(runs: list[Path], page: Path) -> None:
    rows = {row["metric"]: row for row in of_kind(page, "difference")}
    assert {(row["method"], row["baseline"]) for row in rows.values()} == {("distilled", "sft_continued")}
    for metric in ("teacher_nll", "forward_kl", "reverse_kl"):
        a, b = ({seed: scores(run, name, metric) for seed, run in zip(SEEDS, runs, strict=True)} for name in ("distilled", "sft_continued"))
        want = hierarchical_bootstrap(a, b)
        assert rows[metric]["difference"]["mean"] == pytest.approx(want.difference)
        assert (rows[metric]["low"], rows[metric]["high"], rows[metric]["p_value"]) == (want.low, want.high, want.p_value)
        assert (rows[metric]["paired"], rows[metric]["seeds"]) == (True, [2, 2])


def test_the_pages(page: Path) -> None:
    assert {p.name for p in page.rglob("*.*")} == {"compare.md", "compare.html", "compare.jsonl", "cost.svg", "validation.svg"}
    markdown = (page / "compare.md").read_text()
    assert "| method | seeds | ROUGE-L ↑ | teacher NLL ↓ | forward KL ↓ | reverse KL ↓ | distinct-2 | time | tokens | steps |" in markdown
    assert "](figures/cost.svg)" in markdown
    assert (page / "compare.html").read_text().count("<svg") > 10


def test_what_is_logged_while_training(runs: list[Path]) -> None:
    *during, final = json.loads((titled(runs[0], "distilled", "students") / "log_history.json").read_text())["history"]
    assert "seconds" not in final, "the last validation is of the best checkpoint, after training"
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(during))
    lengths = [e["completions/mean_length"] for e in during if "loss" in e]
    assert during[-1]["tokens"] == pytest.approx(2 * sum(lengths)), "four steps of two responses"
    assert [e["tokens"] for e in during if "eval_loss" in e] == pytest.approx([2 * sum(lengths[:2]), 2 * sum(lengths)])


def test_a_resumed_clock_goes_on(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=3, use_cpu=True)
    now, state, control = iter([100.0, 101.0, 103.0, 500.0, 504.0]), TrainerState(), TrainerControl()
    clock = Clock(lambda: next(now))

    def log(clock: Clock, step: int, **entry: float) -> dict[str, float]:
        state.global_step = step
        state.log_history.append({"step": step, **entry})
        clock.on_log(args, state, control)
        return state.log_history[-1]

    clock.on_train_begin(args, state, control)
    assert log(clock, 2, **{"completions/mean_length": 5.0}) == {"step": 2, "completions/mean_length": 5.0, "seconds": 1.0, "tokens": 60.0}
    assert log(clock, 3, eval_loss=1.0) == {"step": 3, "eval_loss": 1.0, "seconds": 3.0, "tokens": 90.0}
    again = Clock(lambda: next(now))
    again.on_train_begin(args, state, control)
    assert log(again, 4, eval_loss=1.0) == {"step": 4, "eval_loss": 1.0, "seconds": 7.0, "tokens": 120.0}
    again.on_train_end(args, state, control)
    assert "seconds" not in log(again, 4, eval_loss=1.0)


def test_what_is_no_finished_run_is_refused(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert f"{tmp_path} is no output directory of `tdistill run`" in refused(capsys, tmp_path)
    begun = copied(runs[0], tmp_path / "begun")
    shutil.rmtree(begun / "evaluation")
    command = f"`tdistill run {begun / 'recipe.yaml'} output_dir={begun}` first"
    assert f"{begun} has no complete evaluation: {command}" in refused(capsys, runs[1], begun)
    lost = copied(runs[0], tmp_path / "lost")
    student = titled(lost, "distilled", "students")
    (student / "artefact.json").unlink()
    assert f"{student} is not complete, and an evaluation of {lost} reads it" in refused(capsys, lost)


@pytest.mark.parametrize("place", ["models/0123/stage.json", "train/0123/stage.json", "evaluate/0123/stage.json"])
def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("{}")
    (tmp_path / ".tdistill").write_text("")
    assert f"{tmp_path} was made by an earlier tdistill, whose results this version can't read" in refused(capsys, tmp_path)


def test_what_can_not_be_compared_is_refused(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fewer = copied(runs[1], tmp_path / "fewer", lambda notes: notes["prompts"].pop())
    assert "their test prompts differ (6 and 5, 5 of them in both)" in refused(capsys, runs[0], fewer)
    other = copied(runs[1], tmp_path / "other", lambda notes: notes["compared"].update(teacher="0123"))
    assert "(0123). Compare students of one teacher." in refused(capsys, runs[0], other)
    hotter = copied(runs[1], tmp_path / "hotter", lambda notes: notes["compared"].update({"evaluation.temperature": 0.5}))
    assert "evaluation.temperature 1.0 and 0.5" in refused(capsys, runs[0], hotter)


def test_a_baseline_that_is_not_there_and_an_output_that_is_taken(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "No method is called 'sft_continue'. Did you mean 'sft_continued'?" in refused(capsys, *runs, "--baseline", "sft_continue")
    assert f"{runs[0]} is the output directory of a run" in refused(capsys, *runs, "--output", runs[0])
    (tmp_path / "file").write_text("")
    assert f"Can't write to {tmp_path / 'file'}" in refused(capsys, *runs, "--output", tmp_path / "file")


def test_only_seeds_are_pooled(runs: list[Path], tmp_path: Path) -> None:
    def faster(notes: dict[str, Any]) -> None:
        (own,) = (system for system in notes["systems"] if system["name"] == "distilled")
        own["settings"]["arguments"]["learning_rate"], own["group"] = 0.5, "faster"

    found = compare([*runs, copied(runs[0], tmp_path / "plain"), copied(runs[1], tmp_path / "faster", faster)])
    by_label = {m.label: m.seeds for m in found.methods if not m.first.is_reference}
    assert by_label == {"sft_continued": [3, 4], "distilled (learning_rate 0.001)": [3, 4], "distilled (learning_rate 0.5)": [4]}
    assert any("of which the first named counts: sft_continued (seed 3, 4), distilled (seed 3)" in note for note in found.notes)
    pairs = {d.a: (d.value.seeds, d.value.paired) for d in found.differences}
    assert pairs == {"distilled (learning_rate 0.001)": ((2, 2), True), "distilled (learning_rate 0.5)": ((1, 1), True)}
    assert compare(runs, "distilled").baseline.label == "distilled"


def test_labels_name_what_tells_methods_apart(runs: list[Path]) -> None:
    student = compare(runs[:1]).methods[-1].first
    group = [replace(student, settings={"objective": {"name": n}, "a": {"b": b}}) for n, b in (("nll", 1), ("csil", 1), ("csil", 2.5))]
    assert labels(group) == ["distilled (nll, b 1)", "distilled (csil, b 1)", "distilled (csil, b 2.5)"]
    assert labels(group[:2]) == ["distilled (nll)", "distilled (csil)"]


def test_a_run_from_before_the_clock_has_quality_and_steps_only(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    old = copied(runs[0], tmp_path / "old")
    for path in old.glob("students/*/log_history.json"):
        log = json.loads(path.read_text())
        for entry in log["history"]:
            entry.pop("seconds", None), entry.pop("tokens", None)
        path.write_text(json.dumps(log))
        altered(path.parent, lambda record, path=path: record["files"].update({path.name: checksum(path)}))
    assert command("compare", old, "--output", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "Note: Trained before wall-clock was recorded, so without it: sft_continued, distilled.\n" in out
    assert f"its ± is over prompts only.\n\npage: {tmp_path / 'out' / 'compare.html'}\n" in out
    assert not (tmp_path / "out/figures/validation.svg").exists()
    assert "optimizer steps" in (tmp_path / "out/figures/cost.svg").read_text()
    (row,) = (r for r in of_kind(tmp_path / "out", "method") if r["method"] == "distilled")
    assert row["total"] == {"seconds": None, "tokens": None, "steps": 4}
