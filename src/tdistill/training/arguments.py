"""Fill ``TrainingArguments`` with tdistill's defaults, and decide for each argument whether it is allowed and whether it shapes the student."""

import enum
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from tdistill.runtime.errors import ConfigError
from tdistill.runtime.hints import hints_of

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
    "report_to": "none",
    "disable_tqdm": True,
    "ddp_find_unused_parameters": False,  # every parameter of the student has a part in the loss
}
# Metrics of ``DistillTrainer.evaluate`` → whether a greater one is better; None: that depends on what is wanted.
METRICS: dict[str, bool | None] = {
    "loss": False, "nll": False, "forward_kl": False, "reverse_kl": False, "student_mass": True, "entropy": None,
}  # fmt: skip
# Arguments that a recipe can't pass: the run owns them.
OWNED_ARGUMENTS = frozenset(
    {"output_dir", "seed", "data_seed", "remove_unused_columns", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"}
)
_VALIDATION = "validation is tdistill's own and does not read it"
_LAUNCHER = "give it to `accelerate launch --config_file`, see recipes/accelerate"
_HUB = "tdistill pushes nothing to a hub, and a recipe is copied into every result: push the saved student yourself (hf upload)"
# Arguments that DistillTrainer ignores, or that make its result wrong: refused at any value but the default.
UNUSED_ARGUMENTS: dict[str, str] = {
    "label_smoothing_factor": "it belongs to the Trainer's own loss, and the objective is used in its place",
    "neftune_noise_alpha": "the noise is added to an embedding that the student's wrapper does not show",
    "use_liger_kernel": "it replaces the loss of the language model, which the objective does not use",
    "liger_kernel_config": "it belongs to use_liger_kernel, which is not supported",
    "auto_find_batch_size": "another batch size in the middle is another run: set per_device_train_batch_size",
    "enable_jit_checkpoint": "checkpoints on a signal are not sealed: set save_steps",
    "save_on_each_node": "checkpoints are written and sealed by one process",
    "parallelism_config": "only data-parallel training, FSDP and DeepSpeed are supported",
    "bf16_full_eval": f"{_VALIDATION}: it uses the precision of training, set bf16",
    "fp16_full_eval": f"{_VALIDATION}: it uses the precision of training, set fp16",
    "prediction_loss_only": _VALIDATION,
    "eval_do_concat_batches": _VALIDATION,
    "eval_use_gather_object": _VALIDATION,
    "eval_accumulation_steps": _VALIDATION,
    "include_for_metrics": _VALIDATION,
    "batch_eval_metrics": _VALIDATION,
    "label_names": "the collator names the labels",
    "length_column_name": "the roll-outs have no such column",
}
REFUSED_IN_RECIPES: dict[str, str] = UNUSED_ARGUMENTS | {
    # DistillTrainer says these two itself, where they do harm.
    "ignore_data_skip": "a resumed run would train on batches that it has already seen",
    "save_only_model": "a checkpoint without its optimizer can't be resumed from",
    "logging_nan_inf_filter": "a loss that is no number stops the run",
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "deepspeed": _LAUNCHER,
    "accelerator_config": _LAUNCHER,
    "ddp_backend": _LAUNCHER,
    "push_to_hub": _HUB,
    "hub_token": f"a secret never belongs into a recipe; {_HUB}",
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"), _HUB),
}


_LOG = "it says what is logged, and where"
_LOADER = "it says how batches are loaded, not which"
# Arguments that watch a run or place it, and leave every weight of the student as it is.
WATCHING_ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level", "log_level_replica"), _LOG),
    **dict.fromkeys(("disable_tqdm", "report_to", "run_name", "project"), _LOG),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _LOG),
    "include_num_input_tokens_seen": _LOG,
    "skip_memory_metrics": _LOG,
    "debug": "it looks for overflows, and changes no number",
    "eval_on_start": "it validates the start, which is no checkpoint to choose",
    "per_device_eval_batch_size": "validation sums over examples, however many are read at once",
    "save_total_limit": "the best and the newest checkpoint are kept in any case",
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "ddp_timeout": "it says how long processes wait for each other",
    "torch_empty_cache_steps": "it frees memory that nothing uses",
    "use_cpu": "it says where the run computes, as the machine does",
}
# Arguments that can change a weight of the student, if only its last digit; or which checkpoint is chosen.
SHAPING_ARGUMENTS = frozenset(
    {
        *("per_device_train_batch_size", "gradient_accumulation_steps", "average_tokens_across_devices"),
        *("num_train_epochs", "max_steps", "dataloader_drop_last", "dataloader_in_order", "train_sampling_strategy"),
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
        *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "full_determinism", "use_cache"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
        *("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "restore_callback_states_from_checkpoint"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    }
)


def shaping_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a training run that can change the student, with the defaults of tdistill and of transformers filled in.

    Two runs whose results are equal train the same student from the same start, data, objective and seed. Whole numbers are floats
    where the argument is one, so that ``4`` and ``4.0`` are equal.

    Args:
        arguments: the arguments of a recipe, which may be empty.
    """
    merged, hints = _merged(arguments), hints_of(TrainingArguments)
    fields = TrainingArguments.__dataclass_fields__
    found = {name: merged.get(name, fields[name].default) for name in SHAPING_ARGUMENTS}
    if merged["eval_strategy"] == "steps" and not found["eval_steps"]:
        found["eval_steps"] = merged["logging_steps"]  # as TrainingArguments does
    if found["metric_for_best_model"] is not None:
        found["metric_for_best_model"] = f"eval_{str(found['metric_for_best_model']).removeprefix('eval_')}"  # as the Trainer looks it up
    return {name: _normal(found[name], hints[name]) for name in sorted(found)}


def _normal(value: Any, hint: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and float in (hint, *typing.get_args(hint)) else value


def _merged(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return tdistill's defaults with a recipe's arguments over them, and what follows from both."""
    merged = {**DEFAULT_ARGUMENTS, **arguments}
    if merged["eval_strategy"] == "no" or merged["save_strategy"] == "no":
        merged["load_best_model_at_end"] = False
    if "greater_is_better" not in arguments:
        merged["greater_is_better"] = bool(METRICS.get(str(merged["metric_for_best_model"]).removeprefix("eval_")))
    return merged


def training_arguments(arguments: Mapping[str, Any], output_dir: str | Path, seed: int) -> TrainingArguments:
    """Return ``TrainingArguments`` made of tdistill's defaults, the recipe's arguments, and what the run owns."""
    merged = _merged(arguments)
    merged["report_to"] = merged["report_to"] or "none"  # transformers would look for a tracker called None
    if not torch.cuda.is_available():
        merged.setdefault("use_cpu", True)
        merged.setdefault("dataloader_pin_memory", False)
    # data_seed: otherwise the order of the data would depend on the number of processes.
    return TrainingArguments(output_dir=str(output_dir), seed=seed, data_seed=seed, **merged)


def refuse_unused(args: TrainingArguments) -> None:
    """Raise ``ConfigError`` if an argument is set that ``DistillTrainer`` would ignore, or that would make its result wrong."""
    for name, reason in UNUSED_ARGUMENTS.items():
        if getattr(args, name) not in (TrainingArguments.__dataclass_fields__[name].default, None, []):
            raise ConfigError(f"TrainingArguments.{name} is not supported: {reason}.")


def argument_remarks(arguments: Mapping[str, Any], place: str) -> list[str]:
    """Return a sentence for every argument that is allowed but has no effect beside another one."""
    merged = {**DEFAULT_ARGUMENTS, **arguments}
    steps = merged.get("max_steps", -1)
    found: list[str] = []
    schedule = merged.get("lr_scheduler_type", "linear")
    if merged.get("warmup_steps") and schedule in ("constant", "reduce_lr_on_plateau", "greedy"):
        found.append(f"{place}: lr_scheduler_type={schedule} has no warm-up, warmup_steps={merged['warmup_steps']} is not used")
    if steps < 1:
        return found
    if "num_train_epochs" in arguments:
        found.append(f"{place}: max_steps={steps} decides the length, num_train_epochs={arguments['num_train_epochs']} is not used")
    if merged.get("warmup_steps", 0) >= steps:
        found.append(f"{place}: warmup_steps={merged['warmup_steps']} of max_steps={steps}: the learning rate never reaches its full value")
    if validates(arguments) and not _validates_while_training(merged):
        found.append(f"{place}: no validation before the end of {steps} steps, so no choice among checkpoints: lower eval_steps or eval_delay")
    return found


def validates(arguments: Mapping[str, Any]) -> bool:
    """Return whether a run with these arguments is validated while it trains, if it is long enough."""
    return str({**DEFAULT_ARGUMENTS, **arguments}["eval_strategy"]) != "no"


def validates_in_time(arguments: Mapping[str, Any]) -> bool:
    """Return whether at least one validation takes place before the last of ``max_steps``; True where the length is not known yet."""
    merged = {**DEFAULT_ARGUMENTS, **arguments}
    return validates(arguments) and (merged.get("max_steps", -1) < 1 or _validates_while_training(merged))


def _validates_while_training(merged: Mapping[str, Any]) -> bool:
    steps, every = merged["max_steps"], merged.get("eval_steps") or merged["logging_steps"]
    return merged.get("eval_delay", 0) < steps and (merged["eval_strategy"] != "steps" or every <= steps)
