"""The level of the returns: what is measured on the first batches, and how the value head starts from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import small_runs
import torch
from pydantic import ValidationError
from torch import Tensor

from tdistill.mdp.steps import Steps
from tdistill.objectives import BoundObjective, ObjectiveOutput, bind
from tdistill.recipe.schema import ValueConfig
from tdistill.runtime.errors import ConfigError
from tdistill.training.fit import training_arguments
from tdistill.training.trainer import DistillTrainer
from tdistill.training.value import check_auto, level_of_returns, own_rate, set_rate

AUTO = ValueConfig(learning_rate="auto")
# The whole return, of text whose author is unknown, so that all ratios are 1.
WHOLE = {"name": "actor_critic", "gamma": 1.0, "lambda_": 1.0, "center": 0.0}
# Every objective that regresses a value to returns.
REGRESSIONS: dict[str, dict[str, Any]] = {
    "actor_critic": {"name": "actor_critic", "center": 0.0},
    "actor_critic without a limit on the ratio": {"name": "actor_critic", "rho_max": float("inf"), "lambda_": 0.5},
    "mean_actor_critic": {"name": "mean_actor_critic", "center": 0.0},
    "csil": {"name": "csil", "anchor": "tail"},
    "csil with a target network": {"name": "csil", "target_network": True},
    "csil, whole gradient": {"name": "csil", "stop_target": False},
    "q_lambda": {"name": "q_lambda", "rho_max": 2.0},
    "path_consistency": {"name": "path_consistency"},
    "sqil": {"name": "sqil", "gauge": "learned"},
}


def steps_of(objective: BoundObjective, seed: int = 0) -> Steps:
    """Three responses with a value head at 0, as a trainer has them before the first step."""
    world = builders.make_world(seed, (4, 3, 4), (True, True, True), off_support=0.0)
    steps = builders.steps_of(replace(world, value=torch.zeros_like(world.value)), dtype=torch.float32)
    steps = replace(steps, **{name: x.detach() for name, x in vars(steps).items() if isinstance(x, Tensor)})
    if steps.action_value_t is not None:
        steps = replace(steps, action_value_t=torch.zeros_like(steps.action_value_t))
    return replace(steps, target=steps) if "target" in objective.needs else steps


def slope(objective: BoundObjective, steps: Steps, start: float) -> tuple[float, float]:
    """The loss's slope in one constant added to all values, and its curvature there."""
    found = []
    for at in (start, start + 1.0):
        c = torch.tensor(at, requires_grad=True)
        values = {k: x + c for k in ("value_t", "action_value_t") if (x := getattr(steps, k)) is not None}
        raised = replace(steps, **values)
        if steps.target is not None:
            raised = replace(raised, target=replace(steps.target, value_t=steps.target.value_t + c.detach()))
        loss = torch.where(steps.mask_t, objective(raised).loss_t, 0.0).sum()
        found.append(float(torch.autograd.grad(loss, c)[0]))
    return found[0], found[1] - found[0]


@pytest.mark.parametrize("name", REGRESSIONS)
def test_at_the_level_a_constant_value_has_no_slope_left(name: str) -> None:
    objective = bind(REGRESSIONS[name])
    steps = steps_of(objective)
    level = level_of_returns(objective, [steps])
    (before, _), (after, curvature) = slope(objective, steps, 0.0), slope(objective, steps, level.mean)
    assert abs(before) > 1e-2
    assert abs(after) < 1e-3 * abs(before)
    assert curvature > 0
    assert abs(level.mean) > 1e-2
    assert level.size >= abs(level.mean)


def test_for_whole_returns_mean_and_size_are_those_of_the_returns() -> None:
    objective = bind(WHOLE)
    steps = replace(steps_of(objective), behaviour_logp_t=torch.full((3, 4), torch.nan))
    rewards = objective(steps).metrics["td/reward"]
    returns = [float(rewards[row, t + 1 : length].sum()) for row, length in enumerate((4, 3, 4)) for t in range(length)]
    level = level_of_returns(objective, [steps])
    assert level.mean == pytest.approx(sum(returns) / len(returns), rel=1e-4)
    assert level.size == pytest.approx((sum(g * g for g in returns) / len(returns)) ** 0.5, rel=1e-4)


def test_a_response_that_was_cut_off_counts_as_ended() -> None:
    """Else the level would be that of a text without an end: r/(1 − γ), a hundred rewards at γ = .99, and none at γ = 1."""
    for gamma in (0.99, 1.0):
        objective = bind({"name": "csil", "gamma": gamma})
        steps = steps_of(objective)
        cut_off = replace(steps, terminal_t=torch.zeros_like(steps.terminal_t))
        assert level_of_returns(objective, [cut_off]) == level_of_returns(objective, [steps])


def test_micro_batches_and_processes_are_counted_together() -> None:
    objective = bind(REGRESSIONS["csil"])
    first, second = steps_of(objective, 1), steps_of(objective, 2)
    whole = level_of_returns(objective, [first, second])
    assert whole != level_of_returns(objective, [first])
    other: list[Tensor] = []
    level_of_returns(objective, [second], lambda sums: other.append(sums) or sums)
    over_two = level_of_returns(objective, [first], lambda sums: sums + other[0])
    assert (over_two.mean, over_two.size) == pytest.approx((whole.mean, whole.size))


def test_a_loss_that_does_not_teach_the_head_leaves_it_at_zero() -> None:
    objective = bind({**WHOLE, "value_coef": 0.0})
    level = level_of_returns(objective, [steps_of(objective)])
    assert level.mean == 0.0
    assert level.size > 0.0


def constant_error(error: float) -> BoundObjective:
    """An objective whose loss and error are one number."""

    def call(steps: Steps) -> ObjectiveOutput:
        assert steps.value_t is not None
        return ObjectiveOutput(error + 0.0 * steps.value_t, {"td/bellman_error": torch.full_like(steps.value_t, error)})

    return replace(bind("actor_critic"), call=call)


@pytest.mark.parametrize("error", [0.0, float("inf")])
def test_without_a_finite_return_the_head_keeps_the_students_rate(error: float) -> None:
    level = level_of_returns(constant_error(error), [steps_of(bind("actor_critic"))])
    assert (level.mean, level.size) == (0.0, 1.0)


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def make(world: small_runs.World, directory: Path, objective: dict[str, Any], value: ValueConfig = AUTO, **given: Any) -> DistillTrainer:
    arguments = {**small_runs.EVERY_TWO, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 1}
    args = training_arguments(arguments | small_runs.CONSTANT | given, directory, 3)
    return DistillTrainer(world.student(), args, bind(objective), world.data, world.data, world.tokenizer, value=value)


def entry(trainer: DistillTrainer, key: str) -> float:
    (found,) = [e[key] for e in trainer.state.log_history if key in e]
    return found


@pytest.mark.parametrize("name", ["actor_critic", "mean_actor_critic", "csil with a target network"])
def test_the_head_starts_at_the_level_and_learns_in_proportion_to_the_size(name: str, world: small_runs.World, tmp_path: Path) -> None:
    """Adam's first step moves a weight by the learning rate."""
    trainer = make(world, tmp_path, REGRESSIONS[name])
    trainer.train()
    start, rate = entry(trainer, "value/start"), entry(trainer, "value/learning_rate")
    size = rate / trainer.args.learning_rate
    assert abs(start) > 0.1
    assert size >= abs(start) * (1 - 1e-6)
    head = trainer.model.value_head.state
    assert abs(head.bias.item() - start) == pytest.approx(rate, rel=1e-2)
    assert head.weight.abs().max().item() == pytest.approx(rate, rel=1e-2)
    assert entry(trainer, "td/v") == pytest.approx(start, rel=1e-4), "the first step read the values from the level"
    if trainer.target is not None:
        expected = start + trainer.value.target_tau * (head.bias.item() - start)
        assert trainer.target.module.value_head.state.bias.item() == pytest.approx(expected, rel=1e-5)


def test_micro_batches_of_a_step_start_the_head_as_the_whole_batch_does(world: small_runs.World, tmp_path: Path) -> None:
    found = []
    for size, micro in ((4, 1), (1, 4)):
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro}
        trainer = make(world, tmp_path / str(size), REGRESSIONS["actor_critic"], **batches)
        trainer.train()
        found.append((entry(trainer, "value/start"), entry(trainer, "value/learning_rate")))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["plain", "own text"])
def test_a_run_that_was_killed_goes_on_with_the_same_level(kind: str, world: small_runs.World, tmp_path: Path) -> None:
    asked = {"objective": {"name": "csil", "target_network": True}, "value": AUTO}
    arguments = {"save_total_limit": None, "lr_scheduler_type": "cosine"}
    whole = tmp_path / "whole"
    world.train(whole, kind, arguments, keep_checkpoints=True, **asked)
    killed = small_runs.left_by_a_kill(whole, tmp_path / "killed", 2)
    world.train(killed, kind, arguments, keep_checkpoints=True, **asked)
    small_runs.assert_same_weights(killed, whole)


def test_adapters_start_their_head_at_the_level_too(world: small_runs.World, tmp_path: Path) -> None:
    lora = {"lora": {"r": 4, "target_modules": "all-linear"}}
    world.train(tmp_path, arguments={"learning_rate": 1e-6}, objective=WHOLE, value=AUTO, peft=lora)
    bias = small_runs.weights(tmp_path)["value_head.safetensors: state.bias"].item()
    assert bias < -0.1, "at a rate of 1e-6 six steps move it by nothing"


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_a_new_rate_keeps_its_place_in_the_schedule() -> None:
    body, head = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.AdamW([body], lr=0.1)
    own_rate(optimizer, [head], 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)
    set_rate(optimizer, schedule, [head], 5.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.5])
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 1.0])


def test_a_new_rate_reaches_a_schedule_that_watches_a_metric() -> None:
    body, head = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.AdamW([body], lr=0.1)
    own_rate(optimizer, [head], 0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    set_rate(optimizer, schedule, [head], 5.0)
    for metric in (1.0, 2.0):
        schedule.step(metric)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 2.5])


# --- what cannot work ------------------------------------------------------------------------------------------------


def test_an_optimizer_that_steps_by_the_size_of_the_gradient_is_refused(world: small_runs.World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"value\.learning_rate is auto.*a step of optim=sgd already grows with them"):
        make(world, tmp_path, WHOLE, optim="sgd")


def test_an_optimizer_of_ones_own_is_refused(world: small_runs.World, tmp_path: Path) -> None:
    student = world.student()
    optimizer = torch.optim.AdamW(student.parameters())
    args = training_arguments(small_runs.EVERY_TWO, tmp_path, 3)
    with pytest.raises(ConfigError, match=r"needs the trainer's own optimizer"):
        DistillTrainer(student, args, bind(WHOLE), world.data, world.data, world.tokenizer, value=AUTO, optimizers=(optimizer, None))


def test_deepspeed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"DeepSpeed keeps to itself: give a number"):
        check_auto(AUTO, "adamw_torch", deepspeed=True, own_optimizer=False)
    check_auto(ValueConfig(learning_rate=0.1), "sgd", deepspeed=True, own_optimizer=True)


@pytest.mark.parametrize("rate", ["fast", 0.0, -1.0, True])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    with pytest.raises(ValidationError):
        ValueConfig(learning_rate=rate)
