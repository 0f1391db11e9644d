"""What is watched while a student trains: early stopping, answers at every validation, checkpoints that stay."""

import json
from pathlib import Path

import places
import pytest

from tdistill.cli import main
from tdistill.runtime.files import read_jsonl
from tdistill.training.checkpoints import drop_checkpoints


def trained(recipe: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    for stage in ("rollout", "sft", "train"):
        monkeypatch.setattr("sys.argv", ["tdistill", stage, str(recipe), *overrides])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return places.student(recipe, overrides)


def test_completions_are_shown_at_every_validation(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = trained(tiny_recipe, monkeypatch, "train.baselines={}", "train.monitor={log_completions: 2}")
    lines = read_jsonl(student / "completions.jsonl")
    assert [line["step"] for line in lines] == [2, 2, 4, 4, 4, 4], "two validations, and the last one of the student that is saved"
    assert len({line["prompt"] for line in lines}) == 2
    assert all(line["prompt"] and line["completion"] for line in lines)
    assert not (student / "checkpoints").exists()


def test_a_run_that_gets_no_better_stops_and_keeps_its_best(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = "train.arguments={max_steps: 40, eval_steps: 2, save_steps: 2, learning_rate: 3.0, per_device_train_batch_size: 2}"
    monitor = "train.monitor={early_stopping_patience: 2, keep_checkpoints: true}"
    sampled = "train.objective={name: iq_learn, alpha: 10.0, gauge: max, estimator: sampled, anchor: tail, q_min: -10.0}"
    student = trained(tiny_recipe, monkeypatch, "train.baselines={}", sampled, worse, monitor)
    log = json.loads((student / "log_history.json").read_text())
    validated = {e["step"]: e["eval_loss"] for e in log["history"] if "eval_loss" in e}
    assert max(validated) == log["best_step"] + 4 < 40, "two validations later than the best"
    assert log["validation"]["eval_loss"] == pytest.approx(validated[log["best_step"]], rel=1e-5)
    assert any((student / "checkpoints").glob("checkpoint-*"))


def test_what_a_tracker_wrote_stays(tmp_path: Path) -> None:
    for name in ("checkpoint-2", "checkpoint-4", "runs"):
        (tmp_path / "c" / name).mkdir(parents=True)
        (tmp_path / "c" / name / "file").write_text("x")
    drop_checkpoints(tmp_path / "c")
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["runs"]
    drop_checkpoints(tmp_path / "nothing")
