"""The value head's own learning rate, its head start, and what its loss moves."""

from pathlib import Path
from typing import Any

import places
import pytest
import small_runs
import torch
from transformers import TrainingArguments

from tdistill import DistillTrainer
from tdistill.cli import main
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.recipe.schema import ValueConfig
from tdistill.runtime.errors import ConfigError, ModelError
from tdistill.training.fit import training_arguments
from tdistill.training.value import own_rate

CRITICS: dict[str, dict[str, Any]] = {
    "actor_critic": {},
    "mean_actor_critic": {},
    "csil": {"gauge": "learned"},
    "q_lambda": {"gauge": "learned"},
    "path_consistency": {"gauge": "learned"},
}


def test_a_group_of_its_own(tiny_teacher: Path) -> None:
    student = StudentModel(prune_layers(load_model(find_model(str(tiny_teacher))), [0]), value_head=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.1)
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    own_rate(optimizer, list(student.value_head.parameters()), 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-4, 0.5]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == count
    assert len(optimizer.param_groups[1]["params"]) == 2


def trained(recipe: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Any, Any, torch.Tensor]:
    """Start, student, and the value head's weight."""
    from safetensors.torch import load_file

    for stage in ("rollout", "sft", "train"):
        monkeypatch.setattr("sys.argv", ["tdistill", stage, str(recipe), *overrides])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    directory = places.student(recipe, overrides)
    head = load_file(directory / "value_head.safetensors")["state.weight"]
    return load_model(find_model(str(places.sft(recipe, overrides)))), load_model(find_model(str(directory))), head


def test_a_head_start_leaves_the_student_alone(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = [
        "train.objective={name: actor_critic}",
        "train.baselines={}",
        "train.arguments={max_steps: 3, eval_strategy: 'no', save_strategy: 'no', learning_rate: 1e-3, weight_decay: 0.1}",
    ]
    start, student, head = trained(tiny_recipe, monkeypatch, *common, "train.value={warmup_steps: 3, learning_rate: 1e-2}")
    for a, b in zip(start.parameters(), student.parameters(), strict=True):
        assert torch.equal(a, b)
    assert head.abs().max() > 5e-3
    _, moved, _ = trained(tiny_recipe, monkeypatch, *common, "train.value={warmup_steps: 2}")
    assert not torch.equal(moved.lm_head.weight, start.lm_head.weight)


@pytest.mark.parametrize(("given", "detached"), [({}, True), ({"detach_value": True}, True), ({"detach_value": False}, False)])
@pytest.mark.parametrize("need", ["value", "action_value"])
def test_a_head_moves_nothing_but_itself_unless_it_is_attached(need: str, given: dict[str, bool], detached: bool, tiny_teacher: Path) -> None:
    needs = frozenset({need})
    student = StudentModel.for_needs(prune_layers(load_model(find_model(str(tiny_teacher))), [0]), needs, **given)
    for parameter in student.value_head.parameters():
        torch.nn.init.ones_(parameter)
    ids = torch.randint(250, (1, 6))
    out = student(ids, torch.ones_like(ids), ids[:, 2:], needs=needs)
    out[f"{need}_t"].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in student.value_head.parameters())
    assert (student.lm.model.embed_tokens.weight.grad is None) is detached
    assert student.lm.lm_head.weight.grad is None, "the embeddings say which token, and learn nothing from its value"


@pytest.mark.parametrize("student", [{}, {"value_head": True}], ids=["no head", "no values of tokens"])
def test_a_student_without_the_head_that_is_needed_is_refused(student: dict[str, bool], tiny_teacher: Path, tmp_path: Path) -> None:
    model = StudentModel(prune_layers(load_model(find_model(str(tiny_teacher))), [0]), **student)
    with pytest.raises(ConfigError, match=r"mean_actor_critic needs a value head: pass StudentModel\.for_needs"):
        DistillTrainer(model, TrainingArguments(str(tmp_path)), bind("mean_actor_critic"))
    ids = torch.randint(250, (1, 6))
    with pytest.raises(ModelError, match=r"StudentModel\.for_needs"):
        model(ids, torch.ones_like(ids), ids[:, 2:], needs=frozenset({"action_value"}))


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def gradients(world: small_runs.World, directory: Path, objective: Any, value: ValueConfig | None) -> tuple[dict[str, torch.Tensor], ...]:
    """Gradients of the first training step, the language model's and the value head's; the head is not 0, as after some steps."""
    args = training_arguments({**small_runs.EVERY_TWO, "per_device_train_batch_size": 10}, directory, 3)
    torch.manual_seed(0)
    trainer = DistillTrainer(world.student(), args, objective, world.data, world.data, world.tokenizer, value=value)
    for parameter in trainer.model.value_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    return tuple(
        {name: p.grad for name, p in part.named_parameters() if p.grad is not None} for part in (trainer.model.lm, trainer.model.value_head)
    )


@pytest.mark.parametrize("name", ["actor_critic", "mean_actor_critic"])
def test_by_default_the_critics_loss_does_not_move_the_body_of_the_student(name: str, world: small_runs.World, tmp_path: Path) -> None:
    without, large = bind(name, value_coef=0.0), bind(name, value_coef=1000.0)
    for value in (None, ValueConfig(), ValueConfig(detach=True)):
        (body, still), (same, moved) = gradients(world, tmp_path, without, value), gradients(world, tmp_path, large, value)
        assert len(body) > 10
        assert any(gradient.abs().max() > 1e-5 for gradient in body.values()), "the actor moves it"
        for key, gradient in body.items():
            torch.testing.assert_close(same[key], gradient, msg=key)
        assert all(gradient.eq(0).all() for gradient in still.values())
        assert all(gradient.abs().max() > 1.0 for gradient in moved.values())
    attached = ValueConfig(detach=False)
    (body, _), (other, _) = gradients(world, tmp_path, without, attached), gradients(world, tmp_path, large, attached)
    assert max(float((other[key] - body[key]).abs().max()) for key in body) > 1.0


@pytest.mark.parametrize("name", CRITICS)
def test_a_detached_head_learns_under_every_objective_that_has_one(name: str, world: small_runs.World, tmp_path: Path) -> None:
    objective = bind(name, **CRITICS[name])
    (detached, head), (attached, same) = (gradients(world, tmp_path, objective, ValueConfig(detach=detach)) for detach in (True, False))
    for key, gradient in head.items():
        torch.testing.assert_close(gradient, same[key], msg=key)
    assert all(gradient.abs().max() > 1e-4 for gradient in head.values())
    assert max(float((attached[key] - detached[key]).abs().max()) for key in detached) > 1e-4
