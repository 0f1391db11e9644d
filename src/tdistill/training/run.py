"""One training run, from a start directory and caches to a saved student; a rerun resumes from its last whole checkpoint."""

import json
import math
import shutil
from collections.abc import Callable
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
    TrainingArguments,
)
from transformers.integrations import TrackioCallback

from tdistill.adapters import add_lora
from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import MixedDataset, Mixture
from tdistill.files import write_json
from tdistill.head.student import StudentModel
from tdistill.models import find_model, load_model
from tdistill.objectives import BoundObjective
from tdistill.processes import is_main_process, wait_for_everyone
from tdistill.progress import bar, say
from tdistill.training.clock import Clock
from tdistill.training.completions import COMPLETIONS, LogCompletions
from tdistill.training.extras import Extras
from tdistill.training.trainer import DistillTrainer

CHECKPOINTS, ROLLOUTS, LOG_FILE = "checkpoints", "rollouts", "log_history.json"
# Written last into a checkpoint: one without it was cut short and is not resumed from.
COMPLETE = "tdistill.complete"

# Ours where transformers' own default does not fit; a recipe overrides any of them.
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "logging_steps": 5,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "report_to": "none",
    "disable_tqdm": True,
    "ddp_find_unused_parameters": False,  # every parameter of the student has a part in the loss
}


def training_arguments(arguments: dict[str, Any], output_dir: str | Path, seed: int) -> TrainingArguments:
    """``TrainingArguments`` from our defaults, the recipe's, and what the run owns."""
    merged = {**DEFAULT_ARGUMENTS, **arguments}
    if merged["eval_strategy"] == "no" or merged["save_strategy"] == "no":
        merged["load_best_model_at_end"] = False
    if not torch.cuda.is_available():
        merged.setdefault("use_cpu", True)
        merged.setdefault("dataloader_pin_memory", False)
    # data_seed: otherwise the order of the data would depend on the number of processes.
    return TrainingArguments(output_dir=str(output_dir), seed=seed, data_seed=seed, **merged)


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
        train_dataset: to learn from.
        eval_dataset: picks the best checkpoint, by ``metric_for_best_model``.
        tokenizer: saved with the student.
        arguments: for ``TrainingArguments``.
        seed: of data order and dropout.
        title: of the progress bar.
        load_teacher: called only if the objective or p = 1 needs the teacher online, or to score the student's roll-outs.
        extras: what else a run may have.

    Returns:
        The validation metrics of the student that was saved.
    """
    extras = extras or Extras()
    checkpoints = directory / CHECKPOINTS
    args = training_arguments(arguments, checkpoints, seed)
    torch.manual_seed(seed)
    model: Any = load_model(find_model(str(start)), "float32", extras.trust_remote_code).train()
    if extras.peft is not None:
        model = add_lora(model, extras.peft)
    student = StudentModel.for_needs(model, objective.needs, extras.value.detach)
    teacher = lru_cache(load_teacher) if load_teacher else None
    steps_total = _total_steps(args, len(train_dataset))
    rollouts = None
    if extras.on_policy is not None and teacher is not None:
        rollouts = extras.on_policy.rollouts(model, teacher, tokenizer, train_dataset, directory / ROLLOUTS, seed)
    data: RolloutDataset | MixedDataset = train_dataset
    if rollouts is not None or extras.corpus is not None:
        mixture = extras.on_policy.mixture if extras.on_policy else Mixture(0.0)
        data = MixedDataset(train_dataset, rollouts, mixture, steps_total, _examples_per_step(args), seed, extras.corpus)
    online = "dense" in objective.needs or train_dataset.teacher_top_p >= 1.0 or (extras.lm is not None and extras.lm.reads_teacher)
    trainer = DistillTrainer(
        student,
        args,
        objective,
        data,
        eval_dataset,
        tokenizer,
        teacher_model=teacher() if online and teacher else None,
        value=extras.value,
        lm=extras.lm,
        callbacks=[Clock(), _MarkComplete()],
    )
    if extras.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(extras.early_stopping_patience))
    if extras.log_completions:
        answered, trackers = (eval_dataset, extras.log_completions, extras.sampling), trainer.callback_handler.callbacks
        trainer.add_callback(LogCompletions(student, tokenizer, *answered, directory / COMPLETIONS, trackers))
    trainer.remove_callback(PrinterCallback)
    rest = len(data) % _examples_per_step(args)
    if args.world_size > 1 and rest:
        say(f"{title}: the last batch of an epoch has {rest} examples of {_examples_per_step(args)}; processes fill it up with earlier ones")
    if is_main_process():
        drop_unfinished(checkpoints)
    wait_for_everyone()
    resume = last_checkpoint(checkpoints)
    with bar(title, steps_total, "step", _step_of(resume) if resume else 0) as progress:
        trainer.add_callback(_ShowProgress(progress))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.remove_callback(TrackioCallback)  # it has finished its run, and would start another for one validation
    metrics = trainer.evaluate() if eval_dataset is not None else {}
    if extras.peft is not None and extras.merge:
        student.lm = model.merge_and_unload()
    trainer.save_model(str(directory))
    history = {
        "objective": objective.describe(),
        "best_step": trainer.state.best_global_step,
        "validation": metrics,
        "history": trainer.state.log_history,
        "rollouts": rollouts.log if rollouts else [],
    }
    if is_main_process():
        write_json(directory / LOG_FILE, history)
        if not extras.keep_checkpoints:
            drop_checkpoints(checkpoints)
    wait_for_everyone()
    return metrics


def read_history(directory: Path) -> dict[str, Any]:
    """What ``train_student`` logged."""
    return json.loads((directory / LOG_FILE).read_text(encoding="utf-8"))


def drop_checkpoints(directory: Path) -> None:
    """Remove all checkpoints, and the directory unless a tracker has its logs there."""
    for path in directory.glob("checkpoint-*"):
        shutil.rmtree(path)
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()


def drop_unfinished(directory: Path) -> None:
    """Remove the checkpoints that a kill cut short."""
    for path in directory.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint."""
    return max((p for p in directory.glob("checkpoint-*") if (p / COMPLETE).exists()), key=_step_of, default=None)


def _step_of(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _total_steps(args: TrainingArguments, examples: int) -> int:
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * math.ceil(examples / _examples_per_step(args)))


def _examples_per_step(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)


class _MarkComplete(TrainerCallback):
    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).write_text("")


class _ShowProgress(TrainerCallback):
    def __init__(self, progress: Any):
        self._progress = progress
        self._note: dict[str, float] = {}

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        self._progress.advance(1)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self._note |= {k: v for k, v in (logs or {}).items() if k in ("loss", "eval_loss", "eval_forward_kl")}
        self._progress.note("  ".join(f"{k} {v:.3f}" for k, v in self._note.items()))
