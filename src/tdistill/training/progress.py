"""Show the progress of a training run as a bar."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tdistill.runtime.progress import bar

_NOTED = ("loss", "eval_loss", "eval_forward_kl")


class ShowProgress(TrainerCallback):
    """Show a bar over the Trainer's number of steps, with the newest losses beside it.

    Args:
        title: title of the bar.
        stack: closes the bar when it is left.
    """

    def __init__(self, title: str, stack: ExitStack):
        self._title, self._stack = title, stack
        self._note: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar at the step where the run goes on. The Trainer calls it."""
        self._progress = self._stack.enter_context(bar(self._title, state.max_steps, "step", state.global_step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the bar by one step. The Trainer calls it."""
        self._progress.advance(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Write the newest losses beside the bar. The Trainer calls it."""
        self._note |= {k: v for k, v in (logs or {}).items() if k in _NOTED}
        self._progress.note("  ".join(f"{k} {v:.3f}" for k, v in self._note.items()))
