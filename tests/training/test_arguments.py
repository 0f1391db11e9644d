"""``TrainingArguments`` of a recipe: what works, what is refused with its reason, and that nothing is ignored in silence."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from transformers import TrainingArguments

from tdistill.models.lora import check_lora
from tdistill.runtime.errors import ConfigError
from tdistill.training.argument_checks import check_training_arguments
from tdistill.training.arguments import (
    DEFAULT_ARGUMENTS,
    METRICS,
    OWNED_ARGUMENTS,
    REFUSED_IN_RECIPES,
    SHAPING_ARGUMENTS,
    UNUSED_ARGUMENTS,
    WATCHING_ARGUMENTS,
    argument_remarks,
    refuse_unused,
    shaping_arguments,
    training_arguments,
)
from tdistill.training.trainer import VALIDATION

# Every argument that a recipe may pass, with a value that works on a CPU.
WORKS: dict[str, Any] = {
    "per_device_train_batch_size": 2, "num_train_epochs": 0.5, "max_steps": 10, "learning_rate": 1e-4, "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {}, "warmup_steps": 0.1, "optim": "adamw_torch_fused", "optim_args": None, "weight_decay": 0.1,
    "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "optim_target_modules": None, "gradient_accumulation_steps": 2,
    "average_tokens_across_devices": True, "max_grad_norm": 0.0, "bf16": True, "fp16": False, "tf32": None, "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {}, "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {},
    "torch_compile": False, "torch_compile_backend": None, "torch_compile_mode": None, "use_cache": False, "torch_empty_cache_steps": 1,
    "logging_strategy": "epoch", "logging_steps": 50, "logging_first_step": True, "log_on_each_node": True,
    "include_num_input_tokens_seen": "all", "log_level": "error", "log_level_replica": "error", "disable_tqdm": True, "report_to": "none",
    "run_name": "a", "project": "p", "trackio_space_id": None, "trackio_bucket_id": None, "trackio_static_space_id": None,
    "eval_strategy": "steps", "eval_steps": 5, "eval_delay": 0, "per_device_eval_batch_size": 4, "eval_on_start": True,
    "save_strategy": "best", "save_steps": 500, "save_total_limit": 1, "load_best_model_at_end": True,
    "metric_for_best_model": "eval_reverse_kl", "greater_is_better": False, "restore_callback_states_from_checkpoint": True,
    "full_determinism": False, "use_cpu": True, "dataloader_drop_last": True, "dataloader_num_workers": 1, "dataloader_pin_memory": False,
    "dataloader_persistent_workers": False, "dataloader_prefetch_factor": None, "dataloader_multiprocessing_context": None,
    "dataloader_in_order": True, "train_sampling_strategy": "group_by_length", "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": None, "ddp_broadcast_buffers": None, "ddp_static_graph": None, "ddp_timeout": 60, "debug": "",
    "skip_memory_metrics": True,
}  # fmt: skip


def test_every_argument_of_transformers_is_decided_upon() -> None:
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    decided = [set(WORKS), set(OWNED_ARGUMENTS), set(REFUSED_IN_RECIPES)]
    assert known == set.union(*decided), "a new version of transformers has other arguments: decide what they mean here"
    assert sum(map(len, decided)) == len(known)


@pytest.mark.parametrize("key", WORKS)
def test_an_argument_that_works_is_accepted(key: str) -> None:
    check_training_arguments({key: WORKS[key]}, "train.arguments")


@pytest.mark.parametrize("key", sorted(OWNED_ARGUMENTS | set(REFUSED_IN_RECIPES)))
def test_an_argument_that_can_not_be_honoured_is_refused_by_name_and_its_value_stays_unseen(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"'train\.arguments\.{key}' is ") as error:
        check_training_arguments({key: "hf_value"}, "train.arguments")
    assert "hf_value" not in str(error.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a typing error": ({"learning_rat": 1}, "Did you mean 'learning_rate'?"),
    "no number": ({"learning_rate": "fast"}, "must be a finite number, got 'fast'"),
    "a truth value": ({"learning_rate": True}, "must be a finite number, got True"),
    "NaN": ({"weight_decay": float("nan")}, "must be a finite number, got nan"),
    "negative": ({"learning_rate": -1e-4}, "must be at least 0"),
    "part of a step": ({"max_steps": 2.5}, "must be a whole number, got 2.5"),
    "no steps": ({"max_steps": 0}, "must be a whole number above 0"),
    "fewer than no steps": ({"max_steps": -5}, "must be a whole number above 0"),
    "no batch": ({"per_device_train_batch_size": 0}, "must be at least 1"),
    "no batch to validate": ({"per_device_eval_batch_size": 0}, "must be at least 1"),
    "no epochs": ({"num_train_epochs": 0}, "must be above 0"),
    "steps and a half": ({"eval_steps": 1.5}, "must be a whole number of steps, or a share"),
    "one share": ({"save_steps": 1.0}, "must be a whole number of steps, or a share"),
    "no checkpoints kept": ({"save_total_limit": 0}, "must be at least 1"),
    "beta": ({"adam_beta2": 1.0}, "must be below 1"),
    "strategy": ({"eval_strategy": "sometimes"}, "must be one of no, steps, epoch, got 'sometimes'"),
    "strategy as YAML 1.1 reads no": ({"eval_strategy": False}, "must be one of no, steps, epoch, got False"),
    "sampling": ({"train_sampling_strategy": "shuffled"}, "must be one of 'random', 'sequential', 'group_by_length'"),
    "log level": ({"log_level": "loud"}, "must be one of 'debug'"),
    "metric": ({"metric_for_best_model": "eval_los"}, "no validation has 'eval_los'. Did you mean 'eval_loss'?"),
    "metric that more of is neither": ({"metric_for_best_model": "entropy"}, "neither better nor worse"),
    "metric the wrong way": ({"metric_for_best_model": "eval_nll", "greater_is_better": True}, "but a lower eval_nll is better"),
    "best of no validations": ({"eval_strategy": "no", "load_best_model_at_end": True}, "needs validations and checkpoints"),
    "saves between validations": ({"eval_steps": 4, "save_steps": 6}, "round multiple"),
    "tracker that is unknown": ({"report_to": "tensorbord"}, "tensorbord can't be used here"),
    "tracker that is missing": ({"report_to": ["tensorboard"]}, "tensorboard can't be used here"),
    "optimizer that is unknown": ({"optim": "adam"}, "must be one of"),
    "optimizer that is missing": ({"optim": "paged_adamw_8bit"}, "paged_adamw_8bit can't be used here"),
    "optimizer that is missing, by name": ({"optim": "stable_adamw"}, "torch-optimi"),
    "optimizer that steps in backward": ({"optim": "lomo"}, "inside the backward pass"),
    "optimizer's arguments": ({"optim": "rmsprop", "optim_args": "momentum=x"}, "'train.arguments.optim': rmsprop can't be used here"),
    "optimizer's arguments, unread": ({"optim_args": "betaz=1"}, "optim_args': adamw_torch_fused does not read it"),
    "betas of no Adam": ({"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1': sgd does not read it"),
    "modules of no GaLore": ({"optim_target_modules": ["attn"]}, "adamw_torch_fused does not read it"),
    "checkpointing without it": ({"activation_checkpointing_kwargs": {"use_reentrant": False}}, "needs activation_checkpointing: true"),
    "schedule's argument": ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycle": 1}}, "'train.arguments.lr_scheduler_type'"),
    "schedule's value": ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}}, "'train.arguments.lr_scheduler_type'"),
    "schedule without its arguments": ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
    "schedule by validations": ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}, "requires an eval strategy"),
    "float16 on a CPU": ({"fp16": True, "use_cpu": True}, "a CPU does not train in float16"),
    "two precisions": ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_before_any_roll_out(name: str) -> None:
    arguments, message = WRONG[name]
    with pytest.raises(ConfigError) as error:
        check_training_arguments(arguments, "train.arguments")
    assert message in str(error.value)
    assert "train.arguments" in str(error.value)


def test_the_direction_of_a_metric_is_known_unless_it_is_given(tmp_path: Path) -> None:
    for name, better in METRICS.items():
        for metric in (name, f"eval_{name}"):
            assert training_arguments({"metric_for_best_model": metric}, tmp_path, 0).greater_is_better is bool(better)
    assert set(METRICS) == {"loss", "student_mass", "entropy", *VALIDATION}
    check_training_arguments({"metric_for_best_model": "eval_entropy", "greater_is_better": True}, "train.arguments")


def test_the_check_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    check_training_arguments({"max_steps": 3}, "train.arguments")
    assert torch.equal(before, torch.get_rng_state())


def test_what_another_argument_makes_void_is_said() -> None:
    assert argument_remarks({"max_steps": 10, "eval_steps": 5}, "train.arguments") == []
    remarks = argument_remarks({"max_steps": 10, "num_train_epochs": 3, "warmup_steps": 10, "eval_steps": 20}, "train.arguments")
    for remark, said in zip(remarks, ("num_train_epochs=3 is not used", "never reaches its full value", "no validation before"), strict=True):
        assert said in remark
    assert "has no warm-up" in argument_remarks({"lr_scheduler_type": "constant", "warmup_steps": 5}, "t")[0]
    assert "no validation before" in argument_remarks({"max_steps": 10, "eval_delay": 10}, "t")[0]


@pytest.mark.parametrize("key", sorted(UNUSED_ARGUMENTS))
def test_the_trainer_itself_refuses_what_it_would_ignore(key: str, tmp_path: Path) -> None:
    args = training_arguments({}, tmp_path, seed=0)
    refuse_unused(args)
    default = TrainingArguments.__dataclass_fields__[key].default
    setattr(args, key, (not default) if isinstance(default, bool) else 0.1 if isinstance(default, float) else ["loss"])
    with pytest.raises(ConfigError, match=f"TrainingArguments.{key} is not supported: "):
        refuse_unused(args)


WRONG_LORA: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"rank": 4}, "lora.rank is no argument of peft.LoraConfig. Did you mean 'r'?"),
    "alpha": ({"alpha": 4}, "Did you mean 'lora_alpha'?"),
    "r = 0": ({"r": 0}, "lora.r must be at least 1"),
    "half a rank": ({"r": 2.5}, "lora.r must be a whole number, got 2.5"),
    "NaN": ({"lora_alpha": float("nan")}, "must be a whole number, got nan"),
    "all dropped": ({"lora_dropout": 1.0}, "must be below 1"),
    "modules": ({"target_modules": 5}, "or null, got 5"),
    "bias": ({"bias": "some"}, "must be one of 'none', 'all', 'lora_only'"),
    "nothing trained": ({"inference_mode": True}, "no adapter would be trained"),
    "other base weights": ({"init_lora_weights": "pissa"}, "is not supported"),
    "pattern": ({"rank_pattern": {"q": "x"}}, "must give every pattern a number"),
}


@pytest.mark.parametrize("name", WRONG_LORA)
def test_a_wrong_argument_of_lora_is_refused(name: str) -> None:
    arguments, message = WRONG_LORA[name]
    with pytest.raises(ConfigError) as error:
        check_lora(arguments)
    assert message in str(error.value)


def test_arguments_of_lora_that_work_are_accepted() -> None:
    check_lora({"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.1, "use_rslora": True, "rank_pattern": {"q": 4}})
    check_lora({"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "layers_to_transform": [0]})


FIELDS = {name for name, field in TrainingArguments.__dataclass_fields__.items() if field.init}


def test_of_every_argument_it_is_decided_whether_it_can_change_the_student() -> None:
    decided = [SHAPING_ARGUMENTS, WATCHING_ARGUMENTS, OWNED_ARGUMENTS, REFUSED_IN_RECIPES]
    times = Counter(name for names in decided for name in names)
    assert {name for name, count in times.items() if count > 1} == set()
    assert set(times) == FIELDS


CHANGED: dict[str, Any] = {
    "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}, "optim": "sgd", "optim_args": "momentum=0.5",
    "optim_target_modules": ["attn"], "eval_strategy": "epoch", "save_strategy": "epoch", "metric_for_best_model": "eval_nll",
    "torch_compile_backend": "inductor", "torch_compile_mode": "default", "train_sampling_strategy": "sequential",
    "activation_checkpointing_kwargs": {"use_reentrant": False}, "gradient_checkpointing_kwargs": {"use_reentrant": False},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SHAPING_ARGUMENTS))
def test_an_argument_that_can_change_the_student_changes_what_shapes_it(name: str) -> None:
    default = shaping_arguments({})[name]
    value = CHANGED[name] if name in CHANGED else (not default) if isinstance(default, bool | None) else default + 1
    assert shaping_arguments({name: value}) != shaping_arguments({})
    assert shaping_arguments({name: value})[name] == value


def test_a_metric_with_and_without_eval_before_it_shapes_the_same_student() -> None:
    assert shaping_arguments({"metric_for_best_model": "nll"}) == shaping_arguments({"metric_for_best_model": "eval_nll"})
    assert shaping_arguments({"metric_for_best_model": None})["metric_for_best_model"] is None


def test_an_argument_that_only_watches_does_not_shape() -> None:
    for name in WATCHING_ARGUMENTS:
        assert shaping_arguments({name: 7, "eval_steps": 2}) == shaping_arguments({"eval_steps": 2})


def test_defaults_are_part_of_what_shapes_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shaping_arguments({})
    assert plain["per_device_train_batch_size"] == 8
    assert plain["weight_decay"] == TrainingArguments.__dataclass_fields__["weight_decay"].default
    monkeypatch.setitem(DEFAULT_ARGUMENTS, "per_device_train_batch_size", 16)
    assert shaping_arguments({}) != plain


def test_the_same_numbers_written_otherwise_shape_the_same() -> None:
    assert json.dumps(shaping_arguments({"learning_rate": 1e-3, "warmup_steps": 4})) == json.dumps(
        shaping_arguments({"warmup_steps": 4.0, "learning_rate": 0.001})
    )
    assert shaping_arguments({"weight_decay": 0, "load_best_model_at_end": True}) == shaping_arguments({})
    assert shaping_arguments({"metric_for_best_model": "nll"})["greater_is_better"] is False
    assert shaping_arguments({"eval_strategy": "no"})["load_best_model_at_end"] is False


def test_validations_follow_the_logs_where_they_have_no_steps_of_their_own() -> None:
    assert shaping_arguments({"logging_steps": 10})["eval_steps"] == 10.0
    assert shaping_arguments({"logging_steps": 10, "eval_steps": 2})["eval_steps"] == 2.0
    assert training_arguments({"logging_steps": 10}, "unused", 0).eval_steps == 10


def test_watching_a_run_changes_no_weight(tiny_teacher: Path, tmp_path: Path) -> None:
    world = small_runs.World(tiny_teacher, tmp_path)
    world.train(tmp_path / "plain")
    watched = {
        "logging_steps": 3,
        "logging_first_step": True,
        "include_num_input_tokens_seen": "all",
        "skip_memory_metrics": False,
        "eval_on_start": True,
        "per_device_eval_batch_size": 3,
        "save_total_limit": 1,
        "dataloader_num_workers": 1,
        "dataloader_prefetch_factor": 2,
        "torch_empty_cache_steps": 1,
    }
    assert watched.keys() <= WATCHING_ARGUMENTS.keys()
    world.train(tmp_path / "watched", arguments=watched, monitor={"log_completions": 2})
    small_runs.assert_same_weights(tmp_path / "watched", tmp_path / "plain")
