"""Save and resume training: a checkpoint is whole or refused, and a resumed run takes the steps that are left, no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from tdistill.runtime.errors import NonFiniteLossError, TrainingError
from tdistill.training.checkpoints import find_checkpoints, last_checkpoint, remove_checkpoint, seal, verify
from tdistill.training.checks import check_callbacks, check_same_length
from tdistill.training.finite import non_finite_tensor, non_finite_weight
from tdistill.training.loading import LoadingTrainer
from tdistill.training.schedule import examples_per_step
from tdistill.training.sharding import sharing
from tdistill.training.target import TargetNetwork


class ResumableTrainer(LoadingTrainer):
    """Train, write a manifest into every checkpoint, verify it on a resume, and never save weights that are not finite.

    A subclass sets ``objective`` and ``target``, and raises in ``_check_student`` for a student that must not be saved.
    """

    target: TargetNetwork | None = None
    _resumed_from: Path | None = None  # until the first epoch of a resumed run has begun

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None) -> Any:
        """Train the student, or go on from a checkpoint with the steps that are left, which may be none.

        Args:
            resume_from_checkpoint: a checkpoint's directory; True: the newest whole one in ``output_dir``.
            trial: as in ``transformers.Trainer``.
            ignore_keys_for_eval: as in ``transformers.Trainer``.

        Raises:
            TrainingError: the checkpoint is damaged, was cut short or is of another run.
            NonFiniteLossError: a loss, a gradient, a metric or a weight is not a finite number.
            ConfigError: early stopping is on and there are no validations.
        """
        check_callbacks(self.args, self.callback_handler.callbacks)
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            verify(checkpoint, self._identity())
            check_same_length(checkpoint, self.args, len(self.train_dataset))
        self._resumed_from = checkpoint
        at_start, self.args.eval_on_start = self.args.eval_on_start, self.args.eval_on_start and checkpoint is None
        try:
            return super().train(str(checkpoint) if checkpoint else None, trial, ignore_keys_for_eval)
        finally:
            self.args.eval_on_start = at_start

    def _checkpoint(self, asked: str | bool | None) -> Path | None:
        if asked is None or asked is False:
            return None
        if asked is not True:
            return Path(asked)
        found = last_checkpoint(Path(self.args.output_dir))
        if found is None:
            raise TrainingError(f"There is no whole checkpoint in {self.args.output_dir}: leave resume_from_checkpoint out to start anew.")
        return found

    def _identity(self) -> dict[str, Any]:
        """Return the settings that a run must share with a checkpoint to go on from it, beside its length."""
        args = self.args
        return {
            "objective": self.objective.identity(),
            "examples a step": examples_per_step(args),
            "number of processes": max(args.world_size, 1),
            "way to share the student": sharing(self.accelerator),
            "seed": args.seed,
        }

    # The methods below override the Trainer's own, which it calls at these moments.

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        checkpoint, self._resumed_from = self._resumed_from, None
        if checkpoint is not None:
            ends = self.state.global_step % kwargs["num_update_steps_per_epoch"] == 0
            self._make_up_for_validation(ends, kwargs["trial"], kwargs["ignore_keys_for_eval"])
            if self._is_over():
                self.control.should_training_stop = True
                return
        super()._run_epoch(*args, **kwargs)

    def _is_over(self) -> bool:
        """Return whether the run is over: its checkpoint is that of the last step, or of the validation after which it was stopped."""
        watchers = [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        stopped = any(c.early_stopping_patience_counter >= c.early_stopping_patience for c in watchers)
        return stopped or self.state.global_step >= self.state.max_steps

    def _make_up_for_validation(self, ends: bool, trial: Any, ignore_keys: list[str] | None) -> None:
        """Validate at the end of an epoch, where a kill came between its checkpoint (saved by steps) and its validation (by epochs)."""
        state, args = self.state, self.args
        ends = ends or state.global_step >= state.max_steps
        seen = any(e["step"] == state.global_step for e in state.log_history if "eval_loss" in e)
        if ends and not seen and args.save_strategy == SaveStrategy.STEPS and args.eval_strategy == "epoch" and args.eval_delay <= state.epoch:
            metrics = self._evaluate(trial, ignore_keys)
            self._determine_best_metric(metrics=metrics, trial=trial)

    def _load_callback_state(self) -> None:
        """Restore the state of callbacks, such as the patience of early stopping, and find the best checkpoint again."""
        state, counted = self.state, [c for c in self.callback_handler.callbacks if isinstance(c, ExportableState)]
        for callback in counted:
            name = type(callback).__name__
            stored = state.stateful_callbacks.setdefault(name, callback.state())
            same = [c for c in counted if type(c) is type(callback)]
            own = stored[len(stored) - len(same) + same.index(callback)] if isinstance(stored, list) else stored
            for attribute, value in own.get("attributes", {}).items():
                setattr(callback, attribute, value)
        if self.args.load_best_model_at_end and state.best_global_step:
            assert self._resumed_from is not None
            # By its name: the whole directory may have been moved.
            best = self._resumed_from.parent / f"checkpoint-{state.best_global_step}"
            if not best.is_dir():
                raise TrainingError(f"{self._resumed_from} names {best.name} as the best so far, which is not beside it. Start anew.")
            verify(best, self._identity())
            state.best_model_checkpoint = str(best)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # else the best one could not be loaded where steps are validated that are not saved
        return is_best

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_student()
        if self.target is not None and (name := non_finite_weight(self.target.module)):
            self._refuse_to_save(f"{name} of the target network")
        directory = Path(self._get_output_dir(trial))
        checkpoint = directory / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and checkpoint.exists():  # of an earlier run, or cut short
            remove_checkpoint(checkpoint)
        self.accelerator.wait_for_everyone()
        with self._own_rotation():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(checkpoint, self._identity())
            self._rotate(directory, checkpoint)
        self.accelerator.wait_for_everyone()

    def _rotate(self, directory: Path, newest: Path) -> None:
        """Remove the oldest checkpoints beyond ``save_total_limit``, never the newest or the best."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        if limit is None or limit <= 0:
            return
        kept = {newest.name} | ({Path(best).name} if best else set())
        found = sorted(find_checkpoints(directory), key=lambda path: path.stat().st_mtime)
        old = [path for path in found if path.name not in kept]
        for path in old[: max(0, len(found) - max(limit, len(kept)))]:
            remove_checkpoint(path)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        if self._resumed_from is not None:  # at the end of the last epoch, so that no epoch was left to run
            self._resumed_from = None
            self._make_up_for_validation(True, trial, None)
        with self._own_rotation():
            output = super()._finalize_training(trial, num_train_samples, start_time)
        best = self.state.best_model_checkpoint
        if self.args.should_save and self.args.save_total_limit == 1 and best is not None:
            self._rotate(Path(best).parent, Path(best))
        return output

    @contextmanager
    def _own_rotation(self) -> Iterator[None]:
        """Keep the Trainer from removing checkpoints: it would do so before the new one is whole, and leave manifests of half removed ones."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as a model directory.

        Raises:
            NonFiniteLossError: a weight or the student's loss is not a finite number; nothing is written.
        """
        if not _internal_call:  # else _save_checkpoint has checked
            self._check_student()
        if self.is_fsdp_enabled:  # the processes gather it, whatever fsdp_state_dict_type says about checkpoints
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _check_student(self) -> None:
        name = non_finite_weight(self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # every process sees its own part
            bad = self.accelerator.reduce(torch.tensor(float(name is not None), device=self.args.device), "sum")
            name = name or ("a weight in another process" if bad else None)
        if name:
            self._refuse_to_save(name)

    def _refuse_to_save(self, name: str) -> None:
        raise NonFiniteLossError(
            f"{name} is not finite after step {self.state.global_step}: this student is not saved. {self._kept()} Lower the learning rate."
        )

    def _kept(self) -> str:
        last = last_checkpoint(Path(self.args.output_dir))
        return f"The last good checkpoint is {last}." if last else "There is no checkpoint before it."

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:  # one process writes
            return
        directory = Path(output_dir or self.args.output_dir)
        if state_dict is not None and (name := non_finite_tensor(state_dict)):  # gathered from shards
            self._refuse_to_save(name)
        directory.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(directory, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.accelerator.unwrap_model(model or self.model).load_weights(resume_from_checkpoint)

    # The target network is training state, like the optimizer's.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.target is not None and self.args.should_save:
            self.target.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.target is not None and checkpoint is not None:
            self.target.load(Path(checkpoint))

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        verify(Path(best), self._identity())
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self.accelerator.unwrap_model(self.model).load_weights(best)
