"""The log of a training run is read back as it was written, or refused with what to delete."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from tdistill.runtime.errors import OutputError
from tdistill.training.log import LOG_FILE, history_of, read_history

STATE = TrainerState(best_global_step=2, log_history=[{"step": 2, "loss": 1.5}, {"step": 2, "eval_loss": 1.0}, {"step": 4, "train_loss": 9.0}])


def written(directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    log = history_of(STATE, "nll", {"eval_loss": 1.0}, [{"round": 0, "tokens": 12}])
    (directory / LOG_FILE).write_text(json.dumps({**log, **changes}))
    return directory


def test_a_log_is_read_as_it_was_written_without_the_mean_that_a_resume_makes_wrong(tmp_path: Path) -> None:
    found = read_history(written(tmp_path / "student"))
    assert found["history"] == [{"step": 2, "loss": 1.5}, {"step": 2, "eval_loss": 1.0}, {"step": 4}]
    assert (found["objective"], found["best_step"], found["validation"]) == ("nll", 2, {"eval_loss": 1.0})
    assert found["rollouts"] == [{"round": 0, "tokens": 12}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": []}, "`history`"),
        ({"history": [{"loss": 1.0}]}, "`0.step`"),
        ({"history": [{"step": 2, "loss": "low"}]}, "`history.0.loss` is no number"),
        ({"history": [{"step": 2, "loss": True}]}, "`history.0.loss` is no number"),
        ({"best_step": -1}, "`best_step`"),
        ({"validation": {"eval_loss": None}}, "`validation.eval_loss`"),
        ({"objective": ""}, "`objective`"),
    ],
)
def test_a_damaged_log_is_refused_with_the_student_to_delete(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    student = written(tmp_path / "student", **changes)
    with pytest.raises(OutputError) as refused:
        read_history(student)
    assert message in str(refused.value)
    assert f"Delete {student} and run again: that student alone is trained again." in str(refused.value)


def test_a_log_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=LOG_FILE):
        read_history(tmp_path)
