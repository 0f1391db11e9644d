"""Log the cost of training: wall-clock and tokens, which a resumed run continues to count."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SECONDS, TOKENS = "seconds", "tokens"
MEAN_LENGTH = "completions/mean_length"  # as DistillTrainer logs it, with every training loss


class Clock(TrainerCallback):
    """Add two costs to every entry that is logged while the student trains, in ``TrainerState.log_history``.

    ``seconds`` is the wall-clock time since training started, with student roll-outs, validations and checkpoints. A resumed run goes on
    from the last entry of its checkpoint: time that a kill threw away does not count.
    ``tokens`` is the number of response tokens trained on; a token counts each time it is read, and prompts do not count. It is the
    logged mean length of responses × the examples of the steps, so a short batch at the end of an epoch counts as a whole one. It is
    missing where lengths are not logged.

    Args:
        now: seconds from any start.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._started: float | None = None
        self._tokens, self._counted = 0.0, 0  # the latter: steps whose tokens are in the former
        self._mean_length: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start to count, or go on where the checkpoint's log ends."""
        before = 0.0
        for entry in state.log_history:
            before = entry.get(SECONDS, before)
            self._mean_length = entry.get(MEAN_LENGTH, self._mean_length)
            if TOKENS in entry:
                self._tokens, self._counted = entry[TOKENS], entry["step"]
        self._started = self._now() - before

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        """Add to the entry that was just appended to the log."""
        if self._started is None or not state.log_history:
            return
        entry = state.log_history[-1]
        entry[SECONDS] = self._now() - self._started
        self._mean_length = entry.get(MEAN_LENGTH, self._mean_length)
        if self._mean_length is None:
            return
        examples = (state.global_step - self._counted) * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._tokens, self._counted = self._tokens + examples * self._mean_length, state.global_step
        entry[TOKENS] = self._tokens

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock: later validations are not training."""
        self._started = None
