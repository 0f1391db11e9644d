"""Write and read the log of a training run, ``log_history.json``."""

from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import TrainerState

from tdistill.runtime.errors import OutputError
from tdistill.runtime.forms import Count, Form, Name, Number, check_form, read_form

LOG_FILE = "log_history.json"


class HistoryForm(Form):
    """Declare the form of ``log_history.json``."""

    objective: Name
    best_step: Count | None
    validation: dict[str, Number]
    history: list[dict[str, Any]] = Field(min_length=1)
    rollouts: list[dict[str, Any]] = Field([])


class LogEntryForm(Form):
    """Declare the form of an entry of a training log."""

    step: Count


def history_of(state: TrainerState, objective: str, validation: dict[str, float], rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Return the content of ``log_history.json``.

    Args:
        state: state of the Trainer at the end of the run.
        objective: the objective in words.
        validation: metrics of the student that was saved.
        rounds: what was logged about each round of the student's own roll-outs.
    """
    return {
        "objective": objective,
        "best_step": state.best_global_step,
        "validation": validation,
        # The Trainer's own summary is a mean over the steps of the last process only: wrong after a resume.
        "history": [{k: v for k, v in entry.items() if k != "train_loss"} for entry in state.log_history],
        "rollouts": rounds,
    }


def read_history(directory: Path) -> dict[str, Any]:
    """Read the log that ``fit`` wrote into a student's directory.

    Raises:
        OutputError: see ``read_log``.
    """
    return read_log(directory / LOG_FILE)


def read_log(path: Path) -> dict[str, Any]:
    """Read a training log.

    Raises:
        OutputError: the file is missing or damaged, or an entry holds a value that is no number. The message says what to delete.
    """
    advice = train_again(path.parent)
    found: dict[str, Any] = read_form(path, HistoryForm, OutputError, advice)
    check_form(found["history"], list[LogEntryForm], f"{path}: `history`", OutputError, advice)
    for i, entry in enumerate(found["history"]):
        wrong = next((k for k, v in entry.items() if isinstance(v, bool) or not isinstance(v, int | float)), None)
        if wrong is not None:
            raise OutputError(f"{path}: `history.{i}.{wrong}` is no number. {advice}")
    return found


def train_again(student: Path) -> str:
    """Return the advice for a damaged file of a student, as a sentence."""
    return f"Delete {student} and run again: that student alone is trained again."
