"""Check a recipe's ``arguments`` before anything long starts: types, ranges, contradictions, and whether what they name works here."""

import copy
import enum
import math
import typing
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import SchedulerType

from tdistill.runtime.errors import ConfigError, brief, nearest
from tdistill.runtime.hints import describe_hint, fits, hints_of
from tdistill.training.arguments import METRICS, OWNED_ARGUMENTS, REFUSED_IN_RECIPES, training_arguments
from tdistill.training.compiled import compile_once

# The optimizer steps inside the backward pass: an update by a gradient that is no number could not be stopped.
_STEPS_IN_BACKWARD = ("lomo", "adalomo")
_AT_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0, "weight_decay": 0,
    "adam_beta1": 0, "adam_beta2": 0, "adam_epsilon": 0, "max_grad_norm": 0, "warmup_steps": 0, "eval_delay": 0, "dataloader_num_workers": 0,
    "save_total_limit": 1, "dataloader_prefetch_factor": 1, "ddp_timeout": 1, "ddp_bucket_cap_mb": 1, "torch_empty_cache_steps": 1,
}  # fmt: skip
_ABOVE_ZERO = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")
_STEPS_OR_SHARE = ("logging_steps", "eval_steps", "save_steps", "warmup_steps")
_CHOICES: dict[str, tuple[str, ...]] = {
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("debug", "info", "warning", "error", "critical", "passive"),
    "debug": ("", "underflow_overflow"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
_MOST_STEPS = 2**31
# Errors that optimizers, schedulers and trackers raise if they are missing or their arguments are wrong.
FOREIGN_ERRORS = (ImportError, TypeError, ValueError, RuntimeError, KeyError, AttributeError, AssertionError, ArithmeticError, OSError)


def check_training_arguments(arguments: Mapping[str, Any], place: str) -> None:
    """Check a recipe's ``arguments``, and build once what transformers would build of them: optimizer, schedule and trackers.

    Args:
        arguments: the arguments of one training run, a baseline's own included.
        place: the section, such as ``train.arguments``, for the message.

    Raises:
        ConfigError: an argument is unknown, of the wrong type or out of range, owned by the run, refused with a reason, contradicts
            another, or needs a package that is missing.
    """
    for key, value in arguments.items():
        _check_one(key, value, f"{place}.{key}")
    _check_together(arguments, place)
    try:
        args = training_arguments(arguments, "unused", seed=0)
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"'{place}': {error!s:.400}") from None
    if args.fp16 and args.device.type == "cpu":
        raise ConfigError(f"'{place}.fp16': a CPU does not train in float16, it would use float32. Set bf16, or leave it out.")
    _build(args, place)
    _refuse_unread(arguments, args, place)


def _check_one(key: str, value: Any, place: str) -> None:
    hints = hints_of(TrainingArguments)
    if key in OWNED_ARGUMENTS:
        raise ConfigError(f"'{place}' is set by tdistill itself: leave it out.")
    if key in REFUSED_IN_RECIPES:
        raise ConfigError(f"'{place}' is not supported: {REFUSED_IN_RECIPES[key]}. Leave it out.")
    if key not in hints:
        raise ConfigError(f"'{place}' is no argument of transformers.TrainingArguments.{nearest(key, hints)}")
    hint = _without_text(hints[key])
    if not fits(value, hint):
        raise ConfigError(f"'{place}' must be {describe_hint(hint)}, got {brief(value)}.")
    if key in _CHOICES and not isinstance(value, bool | None) and value not in _CHOICES[key]:
        raise ConfigError(f"'{place}' must be one of {', '.join(map(repr, _CHOICES[key]))}, got {brief(value)}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(key, value, place)


def _without_text(hint: Any) -> Any:
    # "SchedulerType | str" and "dict | str": text is the enumeration's value, or JSON of a command line that is not ours.
    options = typing.get_args(hint)
    if str in options and any(typing.get_origin(o) is dict or o is dict or (isinstance(o, type) and issubclass(o, enum.Enum)) for o in options):
        return typing.Union[tuple(o for o in options if o is not str)]  # noqa: UP007
    return hint


def _check_range(key: str, value: float, place: str) -> None:
    if key in _AT_LEAST and value < _AT_LEAST[key]:
        raise ConfigError(f"'{place}' must be at least {_AT_LEAST[key]:g}, got {brief(value)}.")
    if key in _ABOVE_ZERO and value <= 0:
        raise ConfigError(f"'{place}' must be above 0, got {brief(value)}.")
    if key == "max_steps" and value < 1 and value != -1:
        raise ConfigError(f"'{place}' must be a whole number above 0 (or -1: num_train_epochs decides), got {brief(value)}.")
    if key in ("adam_beta1", "adam_beta2") and value >= 1:
        raise ConfigError(f"'{place}' must be below 1, got {brief(value)}.")
    if key in _STEPS_OR_SHARE and isinstance(value, float) and value >= 1 and (value == 1.0 or value != int(value)):
        raise ConfigError(f"'{place}' must be a whole number of steps, or a share of them below 1, got {brief(value)}.")
    if key != "learning_rate" and value >= _MOST_STEPS:
        raise ConfigError(f"'{place}' must be below {_MOST_STEPS}, got {brief(value)}.")


def _check_together(arguments: Mapping[str, Any], place: str) -> None:
    if arguments.get("load_best_model_at_end") and "no" in (arguments.get("eval_strategy"), arguments.get("save_strategy")):
        raise ConfigError(
            f"'{place}.load_best_model_at_end' needs validations and checkpoints: set eval_strategy and save_strategy, or leave it out."
        )
    metric = arguments.get("metric_for_best_model")
    name = (metric or "eval_loss").removeprefix("eval_")
    if name not in METRICS:
        raise ConfigError(
            f"'{place}.metric_for_best_model': no validation has {brief(metric)}.{nearest(f'eval_{name}', [f'eval_{m}' for m in METRICS])}"
        )
    better, asked = METRICS[name], arguments.get("greater_is_better")
    if better is None and asked is None:
        raise ConfigError(f"'{place}.metric_for_best_model': more {metric} is neither better nor worse; say so with greater_is_better.")
    if better is not None and asked is not None and asked is not better:
        raise ConfigError(
            f"'{place}.greater_is_better' is {str(asked).lower()}, but a {'greater' if better else 'lower'} eval_{name} is better."
        )
    if arguments.get("optim") in _STEPS_IN_BACKWARD or str(arguments.get("optim", "")).endswith("_layerwise"):
        raise ConfigError(
            f"'{place}.optim': {arguments['optim']} updates weights inside the backward pass, where a gradient that is no number can't be "
            "stopped: choose another optimizer."
        )


def _build(args: TrainingArguments, place: str) -> None:
    """Build trackers, the data loader, and optimizer and schedule for one small matrix; let the last two take a step."""
    trackers = args.report_to or []
    try:
        for callback in get_reporting_integration_callbacks(trackers):
            callback()
    except FOREIGN_ERRORS as error:
        wrong = f"'{place}.report_to': {', '.join(trackers):.80} can't be used here: {error!s:.300}"
        raise ConfigError(f"{wrong} Install the package, or set report_to: none.") from None
    try:
        DataLoader(
            TensorDataset(torch.zeros(1)),
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"'{place}': the data loader can't be built: {error!s:.300}") from None
    if args.torch_compile:
        try:
            compile_once(args)
        except FOREIGN_ERRORS as error:
            raise ConfigError(f"'{place}.torch_compile': {args.torch_compile_backend} can't be used here: {error!s:.300}") from None
    try:
        optimizer = _step_once(args)
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"'{place}.optim': {args.optim.value} can't be used here: {error!s:.300}") from None
    try:
        _step_schedule(args, optimizer)
    except FOREIGN_ERRORS as error:
        given = f"'{place}.lr_scheduler_type': {args.lr_scheduler_type.value} with lr_scheduler_kwargs={args.lr_scheduler_kwargs or {}!s:.80}"
        raise ConfigError(f"{given} can't be used: {error!s:.300}") from None


def _refuse_unread(arguments: Mapping[str, Any], args: TrainingArguments, place: str) -> None:
    """Raise ``ConfigError`` for settings of an optimizer that the chosen one does not read."""
    name = args.optim.value
    if args.optim_target_modules and not name.startswith(("galore", "apollo")):
        raise ConfigError(f"'{place}.optim_target_modules': {name} does not read it. Leave it out, or choose an optimizer that does.")
    if args.activation_checkpointing_kwargs and not args.activation_checkpointing:
        raise ConfigError(f"'{place}.activation_checkpointing_kwargs' needs activation_checkpointing: true.")
    if name.startswith(("galore", "apollo")):
        return
    read = Trainer.get_optimizer_cls_and_kwargs(args, None)[1]
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args"):
        default = TrainingArguments.__dataclass_fields__[key].default
        if arguments.get(key, default) == default:
            continue
        without = copy.copy(args)
        setattr(without, key, default)
        if Trainer.get_optimizer_cls_and_kwargs(without, None)[1] == read:
            raise ConfigError(f"'{place}.{key}': {name} does not read it. Leave it out, or choose an optimizer that does.")


def _step_once(args: TrainingArguments) -> torch.optim.Optimizer:
    with torch.random.fork_rng(devices=[]):  # a check must not move the noise of what follows
        module = torch.nn.Linear(4, 4).to(args.device)
    if args.optim.value.startswith(("galore", "apollo")):
        # They look for their modules by name, which only the student has: its package and arguments are what can be checked.
        names = args.optim_target_modules
        if not names:
            raise ValueError("it needs optim_target_modules, such as [attn, mlp].")
        target = "linear" if isinstance(names, str) else names[0]
        Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.ModuleDict({target.replace(".", "_"): module}))
        return torch.optim.SGD(module.parameters(), lr=args.learning_rate)
    cls, given = Trainer.get_optimizer_cls_and_kwargs(args, None)
    optimizer = cls(module.parameters(), **given)
    if args.optim.value.startswith("schedule_free"):
        optimizer.train()
    module(torch.ones(2, 4, device=args.device)).sum().backward()
    optimizer.step()
    return optimizer


def _step_schedule(args: TrainingArguments, optimizer: torch.optim.Optimizer) -> None:
    steps = args.max_steps if args.max_steps > 0 else 1000
    given = {"scheduler_specific_kwargs": args.lr_scheduler_kwargs} if args.lr_scheduler_kwargs else {}
    schedule: Any = get_scheduler(
        args.lr_scheduler_type, optimizer=optimizer, num_warmup_steps=args.get_warmup_steps(steps), num_training_steps=steps, **given
    )
    if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        schedule.step(1.0)
        return
    if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        for factor in schedule.lr_lambdas:
            for step in (0, 1, steps // 2, steps):
                if not (isinstance(rate := factor(step), int | float) and math.isfinite(rate) and rate >= 0):
                    raise ValueError(f"the learning rate of step {step} would be multiplied by {rate!r:.60}.")
        return
    schedule.step()
