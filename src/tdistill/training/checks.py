"""Refuse settings that a ``DistillTrainer`` can't follow, so that none is ignored without a word."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import MixedDataset
from tdistill.models.student import StudentModel
from tdistill.models.value_head import VALUES
from tdistill.objectives import BoundObjective
from tdistill.recipe.schema import LmConfig, ValueConfig
from tdistill.runtime.errors import ConfigError, TrainingError
from tdistill.runtime.files import read_json
from tdistill.training.arguments import refuse_unused
from tdistill.training.finite import check_start
from tdistill.training.on_policy import check_in_order
from tdistill.training.schedule import examples_per_step, total_steps

# Arguments of the Trainer's constructor for losses and metrics of one's own: both are the objective's here.
NOT_TAKEN = ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics")


def own_arguments(args: TrainingArguments, train_dataset: RolloutDataset | MixedDataset | None) -> TrainingArguments:
    """Return a copy of ``args`` for one trainer. The caller's object stays as it is.

    ``remove_unused_columns`` and ``logging_nan_inf_filter`` are False in it, and a ``MixedDataset`` sets ``max_steps``.

    Raises:
        ConfigError: an argument has no effect here, or contradicts the data set.
    """
    refuse_unused(args)
    if args.save_only_model and args.save_strategy != "no":
        raise ConfigError("save_only_model=True writes checkpoints that no run can go on from: leave it out, or set save_strategy to 'no'.")
    own = copy.copy(args)
    own.remove_unused_columns = False  # the collator reads columns that no forward takes
    own.logging_nan_inf_filter = False  # a non-finite loss is an error here, not an average
    if isinstance(train_dataset, MixedDataset):
        _check_mixed(own, train_dataset)
        own.max_steps = train_dataset.steps
    elif train_dataset is not None:
        total_steps(own, len(train_dataset))
    return own


def _check_mixed(args: TrainingArguments, data: MixedDataset) -> None:
    if data.has_own_text:
        check_in_order(args)
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            f"A MixedDataset is read in order, so train_sampling_strategy={args.train_sampling_strategy} has no place: leave it out."
        )
    if args.ignore_data_skip:
        raise ConfigError("A MixedDataset is read in order, and ignore_data_skip=True would read a part of it twice: leave it out.")
    if args.max_steps > 0 and args.max_steps != data.steps:
        raise ConfigError(
            f"The MixedDataset holds {data.steps} steps, but max_steps is {args.max_steps}: make them equal, or leave max_steps out."
        )
    if data.batch_size != (asked := examples_per_step(args)):
        raise ConfigError(
            f"The MixedDataset has {data.batch_size} examples a step, but the arguments ask for {asked} ({args.train_batch_size} × "
            f"{args.gradient_accumulation_steps} accumulated × {max(args.world_size, 1)} processes): make them equal."
        )


def check_constructor(given: Mapping[str, Any]) -> None:
    """Check the arguments that go on to ``transformers.Trainer``.

    Raises:
        ConfigError: one of them would have no effect.
    """
    for name in NOT_TAKEN:
        if given.get(name) is not None:
            raise ConfigError(f"DistillTrainer takes no {name}: the objective defines the loss, and evaluate() its own metrics. Leave it out.")


def reads_every_logit(objective: BoundObjective, *datasets: RolloutDataset | MixedDataset | None) -> bool:
    """Return whether the teacher must run while the student trains: the objective is dense, or a data set has p = 1."""
    return "dense" in objective.needs or reads_every_token(*datasets)


def reads_every_token(*datasets: RolloutDataset | MixedDataset | None) -> bool:
    """Return whether a data set has p = 1, so that every token of the vocabulary is a candidate."""
    return any(data is not None and data.teacher_top_p >= 1.0 for data in datasets)


def check_student(student: StudentModel, objective: BoundObjective, value: ValueConfig | None) -> None:
    """Check that a student has the value head that the objective needs, made as ``value`` says, and finite weights.

    Args:
        student: the student before training.
        objective: what it is trained by.
        value: settings of the value head, or None where nobody gave any.

    Raises:
        ConfigError: the value head is missing or was made otherwise, or the objective reads no setting of it.
        ModelError: a weight is not finite.
    """
    if value is not None and (unused := unused_value_settings(value, objective.needs)):
        raise ConfigError(f"{objective.name} has no value head or target network that would read {', '.join(unused)}: leave it out of value.")
    if not student.offers(objective.needs):
        raise ConfigError(f"{objective.name} needs a value head: pass StudentModel.for_needs(lm, objective.needs).")
    if value is not None and student.detach_value != value.detach:
        raise ConfigError(f"value.detach is {value.detach}, but the StudentModel was made with {student.detach_value}: make them equal.")
    check_start(student, "student")


def check_teacher(objective: BoundObjective, online: bool, teacher: PreTrainedModel | None) -> None:
    """Raise ``ConfigError`` where the teacher must run while the student trains, and there is none."""
    if online and teacher is None:
        raise ConfigError(f"{objective.name} on this data needs the teacher online: pass teacher_model.")


def check_training_data(objective: BoundObjective, lm: LmConfig | None, train_dataset: RolloutDataset | MixedDataset | None) -> None:
    """Check that the training data have the steps that the objective learns from, and windows of text where a term reads some.

    Raises:
        ConfigError: they don't; or they have windows that no term reads.
    """
    _check_windows(lm, train_dataset)
    if "other" in objective.needs and train_dataset is not None and not train_dataset.has_other:
        raise ConfigError(
            f"{objective.name} learns from steps that are not the expert's, and the training data have none: mix in the student's "
            "roll-outs (train.on_policy in a recipe, MixedDataset in Python), or choose other='untaken' where the objective has it."
        )


def _check_windows(lm: LmConfig | None, train_dataset: RolloutDataset | MixedDataset | None) -> None:
    """Raise ``ConfigError`` if a language-modelling term has no text, or text has no term."""
    has_windows = isinstance(train_dataset, MixedDataset) and train_dataset.has_windows
    if lm is not None and train_dataset is not None and not has_windows:
        raise ConfigError("The language-modelling term (lm) reads a corpus, and the training data have none: give a MixedDataset with corpus=.")
    if lm is None and has_windows:
        raise ConfigError("The MixedDataset has a corpus that nothing reads: pass lm=LmConfig(…), or leave the corpus out.")


def unread_value_settings(needs: frozenset[str]) -> list[str]:
    """Return the names of the settings in ``ValueConfig`` that an objective does not read, as it has no value head or no target network."""
    names = [] if needs & VALUES else ["learning_rate", "warmup_steps", "detach"]
    return names if "target" in needs else [*names, "target_tau"]


def unused_value_settings(value: ValueConfig, needs: frozenset[str]) -> list[str]:
    """Return the names of settings that differ from their defaults, though the objective does not read them."""
    default = ValueConfig()
    return [name for name in unread_value_settings(needs) if getattr(value, name) != getattr(default, name)]


def check_same_length(checkpoint: Path, args: TrainingArguments, examples: int) -> None:
    """Check that a run is as long as the one that wrote a checkpoint: the learning rate of a step depends on the number of steps.

    Raises:
        TrainingError: the checkpoint is of a run of another length.
    """
    state = read_json(checkpoint / TRAINER_STATE_NAME, TrainingError)
    key = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    pairs = [(key, state[key], math.ceil(getattr(args, key))), ("steps in all", state["max_steps"], total_steps(args, examples))]
    for name, there, here in pairs:
        if there != here:
            raise TrainingError(
                f"{checkpoint} is of a run with {name}={there}, this one has {here}, so its learning rate would go another way. Resume with "
                f"{name}={there}, or start from that checkpoint's weights as a new run."
            )


def check_callbacks(args: TrainingArguments, callbacks: Sequence[TrainerCallback]) -> None:
    """Check that early stopping has validations to look at.

    Raises:
        ConfigError: it has none.
    """
    if any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        check_early_stopping(args)


def check_early_stopping(args: TrainingArguments) -> None:
    """Check that the arguments ask for validations and say which metric counts.

    Raises:
        ConfigError: they don't.
    """
    if args.eval_strategy == "no" or args.metric_for_best_model is None:
        raise ConfigError(
            f"Early stopping looks at validations, but eval_strategy is {args.eval_strategy.value!r} and metric_for_best_model is "
            f"{args.metric_for_best_model!r}: set both, or leave early stopping out."
        )
