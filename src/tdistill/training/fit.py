"""Run one training, from a start directory and caches to a saved student; a rerun resumes from its last whole checkpoint."""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TrackioCallback

from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import MixedDataset, Mixture
from tdistill.experiment.run_files import read_log
from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import load_model
from tdistill.models.lora import add_lora
from tdistill.models.student import StudentModel
from tdistill.models.vocabulary import vocabulary_size
from tdistill.objectives import BoundObjective
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import sync_tree, write_json
from tdistill.runtime.processes import agreed, is_main_process, wait_for_everyone
from tdistill.runtime.progress import bar, say
from tdistill.training.arguments import training_arguments
from tdistill.training.checkpoints import drop_checkpoints, drop_unfinished, last_checkpoint
from tdistill.training.checks import check_early_stopping, unused_value_settings
from tdistill.training.clock import Clock
from tdistill.training.completions import COMPLETIONS, LogCompletions
from tdistill.training.extras import Extras
from tdistill.training.on_policy import StudentRollouts
from tdistill.training.schedule import examples_per_step, total_steps
from tdistill.training.sharding import check_whole_weights
from tdistill.training.trainer import DistillTrainer
from tdistill.training.value import ValueSettings

CHECKPOINTS, ROLLOUTS, LOG_FILE = "checkpoints", "rollouts", "log_history.json"


def train_student(
    start: Path,
    directory: Path,
    objective: BoundObjective,
    train_dataset: RolloutDataset,
    eval_dataset: RolloutDataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: dict[str, Any],
    seed: int,
    title: str,
    load_teacher: Callable[[], PreTrainedModel] | None = None,
    extras: Extras | None = None,
) -> dict[str, float]:
    """Train and save ``directory`` as an ordinary model, with the log beside it.

    Args:
        start: model directory to start from.
        directory: where the student goes; checkpoints lie in ``checkpoints`` below it until it is saved.
        objective: from ``bind``.
        train_dataset: examples to learn from.
        eval_dataset: picks the best checkpoint, by ``metric_for_best_model``.
        tokenizer: saved with the student.
        arguments: for ``TrainingArguments``.
        seed: seed of data order and dropout.
        title: title of the progress bar.
        load_teacher: called only if the objective or p = 1 needs the teacher online, or to score the student's roll-outs.
        extras: what else a run may have.

    Returns:
        The validation metrics of the student that was saved.
    """
    extras = extras or Extras()
    checkpoints = directory / CHECKPOINTS
    args = training_arguments(arguments, checkpoints, seed)
    check_extras(args, extras, has_teacher=load_teacher is not None)
    torch.manual_seed(seed)
    model: Any = load_model(find_model(str(start)), "float32", extras.trust_remote_code).train()
    if extras.peft is not None:
        model = add_lora(model, extras.peft)
    value = _value_settings(extras.value, objective, title)
    vocab_size = extras.vocab_size or vocabulary_size(tokenizer, {"student": model})
    student = StudentModel.for_needs(model, objective.needs, value.detach)
    teacher = lru_cache(load_teacher) if load_teacher else None
    rollouts = None
    if extras.on_policy is not None and teacher is not None:
        made_by = _digest(start, objective, arguments, extras)
        rollouts = extras.on_policy.rollouts(model, teacher, tokenizer, train_dataset, directory / ROLLOUTS, seed, vocab_size, made_by)
    online = "dense" in objective.needs or train_dataset.teacher_top_p >= 1.0 or (extras.lm is not None and extras.lm.reads_teacher)
    trainer = DistillTrainer(
        student,
        args,
        objective,
        _training_data(train_dataset, rollouts, args, seed, extras),
        eval_dataset,
        tokenizer,
        teacher_model=teacher() if online and teacher else None,
        value=value,
        lm=extras.lm,
        vocab_size=vocab_size,
        callbacks=[Clock()],
    )
    if extras.merge:
        check_whole_weights(trainer.accelerator, "train.peft.merge: true", "set it to false, `evaluate` and `sample` merge when they load")
    if extras.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(extras.early_stopping_patience))
    if extras.log_completions:
        answered, trackers = (eval_dataset, extras.log_completions, extras.sampling), trainer.callback_handler.callbacks
        trainer.add_callback(LogCompletions(student, tokenizer, *answered, directory / COMPLETIONS, trackers, vocab_size))
    _train(trainer, checkpoints, title)
    metrics = trainer.evaluate()
    if extras.peft is not None and extras.merge:
        student.lm = model.merge_and_unload()
    trainer.save_model(str(directory))
    if is_main_process():
        sync_tree(directory)  # the log below says that the student is on the disk
        write_json(directory / LOG_FILE, _history(trainer, metrics, rollouts))
        if not extras.keep_checkpoints:
            drop_checkpoints(checkpoints)
    wait_for_everyone()
    return metrics


def _digest(start: Path, objective: BoundObjective, arguments: dict[str, Any], extras: Extras) -> str:
    """Return 16 hex digits over what makes the student that writes: rounds of another student in the same directory are not its own."""
    settings = [asdict(extras.value), extras.on_policy and asdict(extras.on_policy.mixture), extras.lm and asdict(extras.lm), extras.peft]
    made_by = [weights_fingerprint(find_model(str(start))), objective.describe(), arguments, settings]
    return hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_extras(args: TrainingArguments, extras: Extras, has_teacher: bool) -> None:
    """Check that everything in ``extras`` can be done, before a model is loaded.

    Raises:
        ConfigError: something was asked for that would be left out.
    """
    if extras.on_policy is not None and not has_teacher:
        raise ConfigError("The student's own text (on_policy) is scored by the teacher, and there is none: pass load_teacher, or leave it out.")
    if (extras.lm is None) != (extras.corpus is None):
        raise ConfigError("The language-modelling term (lm) and its corpus go together: give both, or neither.")
    if extras.merge and extras.peft is None:
        raise ConfigError("merge=True merges adapters, and peft is None: give peft, or leave merge out.")
    if extras.early_stopping_patience is not None:
        check_early_stopping(args)


def _value_settings(value: ValueSettings, objective: BoundObjective, title: str) -> ValueSettings:
    """Return the settings that this objective reads. A recipe has one section for all of its objectives, so the rest is said, not refused."""
    unused = unused_value_settings(value, objective.needs)
    if unused:
        say(f"{title}: train.value sets {', '.join(unused)}, which {objective.name} does not read: it has no value head or target network")
    default = ValueSettings()
    return replace(value, **{name: getattr(default, name) for name in unused})


def _training_data(
    expert: RolloutDataset, rollouts: StudentRollouts | None, args: TrainingArguments, seed: int, extras: Extras
) -> RolloutDataset | MixedDataset:
    if rollouts is None and extras.corpus is None:
        return expert
    mixture = extras.on_policy.mixture if extras.on_policy else Mixture(0.0)
    return MixedDataset(expert, rollouts, mixture, total_steps(args, len(expert)), examples_per_step(args), seed, extras.corpus)


def _train(trainer: DistillTrainer, checkpoints: Path, title: str) -> None:
    """Train to the end, from the newest whole checkpoint where there is one, with a progress bar."""
    trainer.remove_callback(PrinterCallback)
    args, rest = trainer.args, len(trainer.train_dataset) % examples_per_step(trainer.args)
    if args.world_size > 1 and rest and not args.dataloader_drop_last:
        say(f"{title}: the last batch of an epoch has {rest} examples of {examples_per_step(args)}; processes fill it up with earlier ones")
    if is_main_process():
        drop_unfinished(checkpoints)
    wait_for_everyone()
    resume = agreed("the last checkpoint", last_checkpoint(checkpoints))
    with ExitStack() as stack:
        trainer.add_callback(_ShowProgress(title, stack))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.remove_callback(TrackioCallback)  # it has finished its run, and would start another for one validation


def _history(trainer: DistillTrainer, metrics: dict[str, float], rollouts: StudentRollouts | None) -> dict[str, Any]:
    return {
        "objective": trainer.objective.describe(),
        "best_step": trainer.state.best_global_step,
        "validation": metrics,
        # The Trainer's own summary is a mean over the steps of the last process only: wrong after a resume.
        "history": [{k: v for k, v in entry.items() if k != "train_loss"} for entry in trainer.state.log_history],
        "rollouts": rollouts.log if rollouts else [],
    }


def read_history(directory: Path) -> dict[str, Any]:
    """Return what ``train_student`` logged.

    Raises:
        OutputError: the log is missing or damaged.
    """
    return read_log(directory / LOG_FILE)


class _ShowProgress(TrainerCallback):
    """Show a bar over the Trainer's own number of steps; ``stack`` closes it."""

    def __init__(self, title: str, stack: ExitStack):
        self._title, self._stack = title, stack
        self._note: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress = self._stack.enter_context(bar(self._title, state.max_steps, "step", state.global_step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._progress.advance(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        self._note |= {k: v for k, v in (logs or {}).items() if k in ("loss", "eval_loss", "eval_forward_kl")}
        self._progress.note("  ".join(f"{k} {v:.3f}" for k, v in self._note.items()))
