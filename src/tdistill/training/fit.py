"""Train one student, from a start and two caches to a model directory; a rerun goes on from the last whole checkpoint."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments
from transformers.integrations import TrackioCallback

from tdistill.data.collate import DistillCollator
from tdistill.data.corpus import PackedCorpus
from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import MixedDataset
from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import DTYPES, load_model
from tdistill.models.lora import add_lora
from tdistill.models.student import StudentModel
from tdistill.objectives import BoundObjective, bind
from tdistill.recipe.schema import MethodConfig, OnPolicyConfig, ValueConfig
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import sync_tree, write_json
from tdistill.runtime.processes import agreed, is_main_process, wait_for_everyone
from tdistill.runtime.progress import say
from tdistill.training.arguments import training_arguments
from tdistill.training.checkpoints import drop_checkpoints, drop_unfinished, last_checkpoint
from tdistill.training.checks import check_early_stopping, reads_every_logit, unused_value_settings
from tdistill.training.clock import Clock
from tdistill.training.completions import COMPLETIONS, LogCompletions
from tdistill.training.inputs import FitInputs
from tdistill.training.log import LOG_FILE, history_of
from tdistill.training.on_policy import Authors, StudentRollouts
from tdistill.training.progress import ShowProgress
from tdistill.training.schedule import examples_per_step, run_length
from tdistill.training.sharding import check_whole_weights
from tdistill.training.trainer import DistillTrainer

CHECKPOINTS, ROLLOUTS = "checkpoints", "rollouts"


def fit(inputs: FitInputs, method: MethodConfig, seed: int, directory: Path, title: str, *, keep_checkpoints: bool = False) -> dict[str, float]:
    """Train a student and save it as an ordinary model directory, with the training log beside it.

    Args:
        inputs: what the run reads.
        method: how the student is trained. Its ``teacher_top_p``, ``origins`` and ``candidate_rule`` are those of ``inputs.train``.
        seed: seed of the order of the data, of dropout, of new weights and of the student's own roll-outs.
        directory: where the student goes. Checkpoints lie in ``checkpoints`` below it until the student is saved.
        title: title of the progress bar.
        keep_checkpoints: keep the checkpoints, whatever ``method.monitor.keep_checkpoints`` says. For a caller that removes them later.

    Returns:
        The validation metrics of the student that was saved.

    Raises:
        ConfigError: the method asks for something that can't be done with these inputs.
        TrainingError: a checkpoint is damaged, or belongs to another run.
        NonFiniteLossError: a loss, a gradient, a metric or a weight is not a finite number.
    """
    args = training_arguments(method.arguments, directory / CHECKPOINTS, seed)
    inputs = replace(inputs, load_teacher=lru_cache(inputs.load_teacher)) if inputs.load_teacher else inputs
    _check(args, method, inputs)
    torch.manual_seed(seed)
    objective = bind(method.objective)
    method = method.model_copy(update={"value": _read_values(method.value, objective, title)})
    student = _student(inputs, method, objective)
    rollouts = _rollouts(inputs, method, student, seed, directory)
    trainer = _trainer(inputs, method, objective, student, args, _training_data(inputs, method, rollouts, args))
    _watch(trainer, student, inputs, method, directory)
    _train(trainer, title)
    metrics = trainer.evaluate()
    if method.peft is not None and method.peft.merge:
        student.lm = student.lm.merge_and_unload()
    trainer.save_model(str(directory))
    if is_main_process():
        sync_tree(directory)  # the log below says that the student is on the disk
        rounds = rollouts.log if rollouts else []
        write_json(directory / LOG_FILE, history_of(trainer.state, objective.describe(), metrics, rounds))
        if not (keep_checkpoints or method.monitor.keep_checkpoints):
            drop_checkpoints(directory / CHECKPOINTS)
    wait_for_everyone()
    return metrics


def _check(args: TrainingArguments, method: MethodConfig, inputs: FitInputs) -> None:
    """Check that all that a method asks for can be done, before a model is loaded.

    Raises:
        ConfigError: something was asked for that would be left out.
    """
    if method.own_text is not None and inputs.load_teacher is None:
        raise ConfigError("The student's own text (on_policy) is scored by the teacher, and there is none: give load_teacher, or leave it out.")
    if method.monitor.early_stopping_patience is not None:
        check_early_stopping(args)


def _read_values(value: ValueConfig, objective: BoundObjective, title: str) -> ValueConfig:
    """Return the settings that this objective reads. A recipe has one section for all of its objectives, so the rest is said, not refused."""
    unused = unused_value_settings(value, objective.needs)
    if unused:
        say(f"{title}: train.value sets {', '.join(unused)}, which {objective.name} does not read: it has no value head or target network")
    return value.model_copy(update={name: ValueConfig.model_fields[name].default for name in unused})


def _student(inputs: FitInputs, method: MethodConfig, objective: BoundObjective) -> StudentModel:
    """Load the start in float32, with new adapters where the method has some, and with the heads that the objective needs."""
    source, attention = find_model(str(inputs.start)), inputs.attn_implementation
    lm: Any = load_model(source, "float32", inputs.trust_remote_code, attn_implementation=attention).train()
    if method.peft is not None:
        lm = add_lora(lm, method.peft.lora)
    return StudentModel.for_needs(lm, objective.needs, method.value.detach)


def _rollouts(inputs: FitInputs, method: MethodConfig, student: StudentModel, seed: int, directory: Path) -> StudentRollouts | None:
    if method.own_text is None or inputs.load_teacher is None:
        return None
    authors = Authors(student.lm, inputs.load_teacher, inputs.tokenizer, inputs.vocab_size, DTYPES[inputs.teacher_dtype])
    return StudentRollouts(authors, inputs.train, directory / ROLLOUTS, method.own_text, seed, _digest(inputs.start, method))


def _digest(start: Path, method: MethodConfig) -> str:
    """Return 16 hex digits over what makes the student that writes: rounds of another student in the same directory are not its own."""
    settings = method.model_dump(exclude={"monitor", "head"}) | ({"head": method.head.shaping()} if method.head.shaping() else {})
    made_by = [weights_fingerprint(find_model(str(start))), bind(method.objective).describe(), settings]
    return hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _training_data(
    inputs: FitInputs, method: MethodConfig, rollouts: StudentRollouts | None, args: TrainingArguments
) -> RolloutDataset | MixedDataset:
    if rollouts is None and method.lm is None:
        return inputs.train
    on_policy = method.own_text or OnPolicyConfig(lmbda=0.0)
    corpus = PackedCorpus(method.lm.corpus, inputs.tokenizer, method.lm.window) if method.lm else None
    return MixedDataset(inputs.train, on_policy, run_length(args, len(inputs.train)), args.seed, rollouts, corpus)


def _trainer(
    inputs: FitInputs,
    method: MethodConfig,
    objective: BoundObjective,
    student: StudentModel,
    args: TrainingArguments,
    data: RolloutDataset | MixedDataset,
) -> DistillTrainer:
    online = reads_every_logit(objective, inputs.train, inputs.valid) or (method.lm is not None and method.lm.reads_teacher)
    return DistillTrainer(
        student,
        args,
        objective,
        data,
        inputs.valid,
        inputs.tokenizer,
        teacher_model=inputs.load_teacher() if online and inputs.load_teacher else None,
        value=method.value,
        lm=method.lm,
        head=method.head,
        vocab_size=inputs.vocab_size,
        data_collator=DistillCollator(padded=False),
        callbacks=[Clock()],
    )


def _watch(trainer: DistillTrainer, student: StudentModel, inputs: FitInputs, method: MethodConfig, directory: Path) -> None:
    """Add the callbacks that watch the run, and refuse to merge adapters that no process holds whole."""
    monitor = method.monitor
    if method.peft is not None and method.peft.merge:
        check_whole_weights(trainer.accelerator, "train.peft.merge: true", "set it to false, `evaluate` and `sample` merge when they load")
    if monitor.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(monitor.early_stopping_patience))
    if monitor.log_completions:
        trackers = trainer.callback_handler.callbacks
        trainer.add_callback(LogCompletions(student, inputs, monitor.log_completions, directory / COMPLETIONS, trackers))


def _train(trainer: DistillTrainer, title: str) -> None:
    """Train to the end, from the newest whole checkpoint where there is one, with a progress bar."""
    trainer.remove_callback(PrinterCallback)
    args, rest = trainer.args, len(trainer.train_dataset) % examples_per_step(trainer.args)
    if args.world_size > 1 and rest and not args.dataloader_drop_last:
        say(f"{title}: the last batch of an epoch has {rest} examples of {examples_per_step(args)}; processes fill it up with earlier ones")
    checkpoints = Path(args.output_dir)
    if is_main_process():
        drop_unfinished(checkpoints)
    wait_for_everyone()
    resume = agreed("the last checkpoint", last_checkpoint(checkpoints))
    with ExitStack() as stack:
        trainer.add_callback(ShowProgress(title, stack))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.remove_callback(TrackioCallback)  # it has finished its run, and would start another for one validation
