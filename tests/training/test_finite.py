"""A student that is not finite is never saved, and a number that is none is never a result."""

import shutil
from pathlib import Path
from typing import Any

import places
import pytest
import small_runs
import torch
import yaml
from conftest import command
from transformers import TrainerCallback

from tdistill.evaluation.answer_files import SCORES
from tdistill.evaluation.answers import check_finite
from tdistill.experiment.answers import answers
from tdistill.experiment.graph import is_complete
from tdistill.experiment.systems import systems
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.objectives import bind
from tdistill.runtime.errors import ModelError, NonFiniteLossError
from tdistill.training.checkpoints import find_checkpoints
from tdistill.training.fit import training_arguments
from tdistill.training.trainer import DistillTrainer

SILENT = {"eval_strategy": "no", "save_strategy": "no"}
# One step that throws the weights out: they are finite in float32, and what they compute is not.
THROWN = {"max_steps": 1, "learning_rate": 1e30, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def trainer(world: small_runs.World, directory: Path, objective: Any = small_runs.NLL, *callbacks: Any, **given: Any) -> DistillTrainer:
    args = training_arguments({**small_runs.EVERY_TWO, **small_runs.CONSTANT, **given}, directory, 3)
    return DistillTrainer(world.student(), args, objective, world.data, world.data, world.tokenizer, callbacks=list(callbacks))


@pytest.mark.parametrize("strategies", [SILENT, {"eval_strategy": "no"}, {"load_best_model_at_end": False}, {}])
def test_a_last_step_that_throws_the_weights_out_saves_no_student(strategies: dict[str, str], world: small_runs.World, tmp_path: Path) -> None:
    student = tmp_path / "student"
    with pytest.raises(NonFiniteLossError, match="There is no checkpoint before it"):
        world.train(student, arguments={**THROWN, **strategies})
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert not (student / "log_history.json").exists()
    with pytest.raises(NonFiniteLossError):
        world.train(student, arguments={**THROWN, **strategies})


def test_the_command_line_ends_with_status_2_and_the_stage_is_not_complete(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(tiny_recipe.read_text())
    content["train"]["baselines"] = {}
    content["train"]["arguments"] |= THROWN
    tiny_recipe.write_text(yaml.safe_dump(content))
    assert command("rollout", tiny_recipe) == 0
    assert command("sft", tiny_recipe) == 0
    for _ in range(2):
        assert command("train", tiny_recipe) == 2
        assert "not finite" in (error := capsys.readouterr().err) or "is nan" in error
    assert not is_complete(places.experiment(tiny_recipe), "train")
    assert not (places.student(tiny_recipe) / "model.safetensors").exists()


class Poison(TrainerCallback):
    """Puts a value into one tensor after a step."""

    def __init__(self, step: int, find: Any, value: float = float("nan")):
        self._step, self._find, self._value = step, find, value

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self._step:
            with torch.no_grad():
                self._find(model).view(-1)[0] = self._value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_no_validation_reads_is_found_before_a_checkpoint_is_written(
    value: float, world: small_runs.World, tmp_path: Path
) -> None:
    """A row of the embeddings that no text holds, and the value head under ``nll``'s validation metrics."""
    poison = Poison(4, lambda m: m.lm.model.embed_tokens.weight[300:], value)
    run = trainer(world, tmp_path, small_runs.NLL, poison, eval_strategy="no")
    with pytest.raises(NonFiniteLossError, match=r"embed_tokens.weight is not finite after step 4.*last good checkpoint is .*checkpoint-2\."):
        run.train()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-2"]
    with pytest.raises(NonFiniteLossError, match="is not saved"):
        run.save_model(str(tmp_path / "student"))
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("part", ["value head", "target network", "buffer"])
def test_every_part_of_the_training_state_is_looked_at(part: str, world: small_runs.World, tmp_path: Path) -> None:
    objective = bind("csil", target_network=True, anchor="tail")
    find: dict[str, Any] = {
        "value head": lambda m: next(m.value_head.parameters()),
        "target network": lambda m: next(m.parameters()),
        "buffer": lambda m: m.lm.get_buffer("scale"),
    }
    args = training_arguments({**small_runs.EVERY_TWO, **small_runs.CONSTANT, "eval_strategy": "no"}, tmp_path, 3)
    student = world.student()
    student.register_buffer("scale", torch.ones(2))
    run = DistillTrainer(student, args, objective, world.data, None, world.tokenizer, callbacks=[Poison(2, find[part])])
    if part == "target network":
        assert run.target is not None
        network = run.target.module
        run.pop_callback(Poison)
        run.add_callback(Poison(2, lambda _: network.lm.model.embed_tokens.weight[300:]))
    with pytest.raises(NonFiniteLossError, match="not finite after step 2"):
        run.train()
    assert find_checkpoints(tmp_path) == []


def test_adapters_are_looked_at_merged_and_not(world: small_runs.World, tmp_path: Path) -> None:
    lora = {"r": 4, "target_modules": "all-linear"}
    for merge in (False, True):
        with pytest.raises(NonFiniteLossError):
            world.train(tmp_path / str(merge), arguments={**THROWN, **SILENT}, peft={"lora": lora, "merge": merge})
        assert list((tmp_path / str(merge)).rglob("*.safetensors")) == []


def test_a_validation_metric_that_is_no_number_stops_the_run_where_it_arises(world: small_runs.World, tmp_path: Path) -> None:
    run = trainer(world, tmp_path, small_runs.NLL, Poison(4, lambda m: m.lm.lm_head.weight, float("inf")))
    with pytest.raises(NonFiniteLossError, match=r"eval_\w+ of \d+ validation steps is (nan|inf) after step 4.*checkpoint-2\."):
        run.train()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_run_that_failed_goes_on_from_its_last_good_checkpoint(world: small_runs.World, tmp_path: Path) -> None:
    whole = trainer(world, tmp_path / "whole")
    whole.train()
    failed = trainer(world, tmp_path / "failed", small_runs.NLL, Poison(4, lambda m: m.lm.lm_head.weight))
    with pytest.raises(NonFiniteLossError):
        failed.train()
    again = trainer(world, tmp_path / "failed")
    again.train(resume_from_checkpoint=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_looking_at_the_student_changes_no_later_step(world: small_runs.World, tmp_path: Path) -> None:
    saved, unsaved = trainer(world, tmp_path / "a", save_steps=1, load_best_model_at_end=False), trainer(world, tmp_path / "b", **SILENT)
    for run in (saved, unsaved):
        run.train()
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in (saved, unsaved)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("metric", ["forward_kl", "reverse_kl", "student_mass", "teacher_nll", "entropy", "rouge_l", "mean_length"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_refused(metric: str, value: float) -> None:
    check_finite({metric: {"a": 1.0}, "distinct_2": {"a": float("nan")}}, "distilled")
    with pytest.raises(ModelError, match=f"{metric} of distilled on prompt 'b' is"):
        check_finite({metric: {"a": 1.0, "b": value}}, "distilled")


def test_scores_of_a_model_with_a_weight_that_is_none_are_not_written(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    for stage in ("rollout", "sft", "train", "evaluate"):
        assert command(stage, tiny_recipe) == 0
    run = places.experiment(tiny_recipe)
    path = places.student(run) / "model.safetensors"
    measured = next(answers(run, system) for system in systems(run) if system.name == "distilled")
    weights = load_file(path)
    weights["lm_head.weight"][:, 0] = torch.inf
    save_file(weights, path, {"format": "pt"})
    places.altered(path.parent, lambda manifest: manifest["files"].update({path.name: places.checksum(path)}))  # as if training had saved it
    shutil.rmtree(measured.directory)
    assert command("evaluate", tiny_recipe) == 2
    assert "logits are not finite on" in capsys.readouterr().err
    assert not (measured.directory / SCORES).exists()
    assert not is_complete(places.experiment(tiny_recipe), "evaluate")


@pytest.mark.parametrize("row", [65, 300])  # a token that the probe may not draw, and a row of padding
def test_a_start_that_could_never_be_saved_is_refused_before_the_roll_outs(
    row: int, tiny_recipe: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = load_model(find_model(str(tiny_teacher)))
    with torch.no_grad():
        student.model.embed_tokens.weight[row, 0] = float("nan")
    student.save_pretrained(tmp_path / "student")
    load_tokenizer(find_model(str(tiny_teacher))).save_pretrained(tmp_path / "student")
    content = yaml.safe_load(tiny_recipe.read_text())
    content["student"] = {"init": "pretrained", "student_model_name_or_path": str(tmp_path / "student")}
    tiny_recipe.write_text(yaml.safe_dump(content))
    assert command("rollout", tiny_recipe) == 2
    assert "embed_tokens.weight of the student" in (error := capsys.readouterr().err)
    assert "before any training" in error
    assert not is_complete(places.experiment(tiny_recipe), "models")
    assert not (tiny_recipe.parent / "run" / "rollouts").exists()


def test_a_trainer_takes_no_student_that_could_never_be_saved(world: small_runs.World, tmp_path: Path) -> None:
    student = world.student()
    with torch.no_grad():
        student.lm_head.weight[300, 0] = float("inf")
    args = training_arguments(small_runs.EVERY_TWO, tmp_path, 3)
    with pytest.raises(ModelError, match="lm_head.weight of the student is not finite before any training"):
        DistillTrainer(student, args, small_runs.NLL, world.data, world.data, world.tokenizer)
