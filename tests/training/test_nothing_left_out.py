"""What somebody asks for is done, refused, or said: nothing is left out without a word."""

from pathlib import Path
from typing import Any

import pytest
import small_runs
from pydantic import ValidationError
from transformers import EarlyStoppingCallback

from tdistill.data.mixed import MixedDataset, RunLength
from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.recipe.schema import LmConfig, OnPolicyConfig, ValueConfig
from tdistill.runtime.errors import ConfigError
from tdistill.training.fit import fit, training_arguments
from tdistill.training.trainer import DistillTrainer

LENGTH = RunLength(6, 4)
NO_OWN_TEXT = OnPolicyConfig(lmbda=0.0)
VALUED = bind("actor_critic")


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


def train_without_teacher(world: small_runs.World, directory: Path, arguments: dict[str, Any], **given: Any) -> None:
    fit(world.inputs(), world.method(arguments={**small_runs.EVERY_TWO, **arguments}, **given), 3, directory, "t")


def trainer(
    world: small_runs.World,
    directory: Path,
    objective: Any = small_runs.NLL,
    data: Any = None,
    given: dict[str, Any] | None = None,
    **more: Any,
) -> DistillTrainer:
    args = training_arguments({**small_runs.EVERY_TWO, **(given or {})}, directory, 3)
    model = more.pop("model", None) or world.student()
    return DistillTrainer(model, args, objective, data or world.data, world.data, world.tokenizer, **more)


def test_own_text_without_a_teacher_is_refused_before_anything_is_written(world: small_runs.World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is scored by the teacher, and there is none"):
        train_without_teacher(world, tmp_path / "student", {}, on_policy={"lmbda": 0.5})
    assert not (tmp_path / "student").exists()


def test_early_stopping_without_validations_is_refused_before_anything_is_written(world: small_runs.World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Early stopping looks at validations, but eval_strategy is"):
        train_without_teacher(world, tmp_path / "student", {"eval_strategy": "no"}, monitor={"early_stopping_patience": 1})
    assert not (tmp_path / "student").exists()


def test_windows_and_their_term_go_together(world: small_runs.World, tmp_path: Path) -> None:
    with_windows = MixedDataset(world.data, NO_OWN_TEXT, LENGTH, 0, corpus=world.corpus)
    without = MixedDataset(world.data, NO_OWN_TEXT, LENGTH, 0)
    for data in (world.data, without):
        with pytest.raises(ConfigError, match="reads a corpus, and the training data have none"):
            trainer(world, tmp_path, data=data, lm=LmConfig(corpus=str(world.corpus_file)))
    with pytest.raises(ConfigError, match="has a corpus that nothing reads"):
        trainer(world, tmp_path, data=with_windows)
    trainer(world, tmp_path, data=with_windows, lm=LmConfig(corpus=str(world.corpus_file)))


@pytest.mark.parametrize("setting", [{"learning_rate": 1e-3}, {"warmup_steps": 2}, {"detach": False}, {"target_tau": 0.5}])
def test_settings_of_a_value_head_that_is_not_there(
    setting: dict[str, Any], world: small_runs.World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value, name = ValueConfig(**setting), next(iter(setting))
    with pytest.raises(ConfigError, match=f"nll has no value head or target network that would read {name}"):
        trainer(world, tmp_path, value=value)
    # A recipe has one section for all its objectives: those that read nothing of it say so.
    world.train(tmp_path / "student", arguments={"max_steps": 2}, value=value)
    assert f"t: train.value sets {name}, which nll does not read" in capsys.readouterr().err.replace("\n", " ")
    if name != "target_tau":
        trainer(world, tmp_path, VALUED, value=value)
    else:
        trainer(world, tmp_path, bind("csil", target_network=True), value=value)


def test_detach_reaches_the_student_that_the_trainer_makes(world: small_runs.World, tmp_path: Path) -> None:
    assert not trainer(world, tmp_path, VALUED, value=ValueConfig(detach=False)).model.detach_value
    assert trainer(world, tmp_path, VALUED, value=ValueConfig(warmup_steps=1)).model.detach_value
    assert trainer(world, tmp_path, VALUED).model.detach_value
    attached = StudentModel.for_needs(world.student(), VALUED.needs, detach_value=False)
    with pytest.raises(ConfigError, match=r"value\.detach is True, but the StudentModel was made with False"):
        trainer(world, tmp_path, VALUED, model=attached, value=ValueConfig(detach=True))


@pytest.mark.parametrize("given", [{"eval_strategy": "no"}, {"metric_for_best_model": None, "load_best_model_at_end": False}])
def test_early_stopping_without_validations_is_refused_in_python_too(given: dict[str, Any], world: small_runs.World, tmp_path: Path) -> None:
    run = trainer(world, tmp_path, given=given, callbacks=[EarlyStoppingCallback(1)])
    with pytest.raises(ConfigError, match="Early stopping looks at validations"):
        run.train()


@pytest.mark.parametrize("name", ["compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics"])
def test_functions_of_ones_own_that_nothing_calls_are_refused(name: str, world: small_runs.World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"takes no {name}"):
        trainer(world, tmp_path, **{name: lambda *_: None})


@pytest.mark.parametrize("given", [{"label_smoothing_factor": 0.1}, {"auto_find_batch_size": True}, {"bf16_full_eval": True}])
def test_arguments_that_would_have_no_effect_are_refused(given: dict[str, Any], world: small_runs.World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"TrainingArguments.{next(iter(given))} is not supported: "):
        trainer(world, tmp_path, given=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lmbda": -0.1}, "greater than or equal to 0"),
        ({"lmbda": float("nan")}, "lmbda must be a finite number"),
        ({"refresh_steps": 0}, "greater than or equal to 1"),
        ({"replay": 0}, "greater than or equal to 1"),
        ({"teacher_mix": 1.0}, "less than 1"),
    ],
)
def test_settings_of_own_text_that_are_out_of_range_are_refused_in_python_too(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OnPolicyConfig(**given)


def test_own_text_that_nobody_writes_is_refused(world: small_runs.World) -> None:
    with pytest.raises(ConfigError, match="asks for the student's own responses, but roll_out is None"):
        MixedDataset(world.data, OnPolicyConfig(lmbda=0.5), LENGTH, 0)


@pytest.mark.parametrize("length", [(0, 4), (6, 0)])
def test_a_run_without_a_step_or_an_example_is_refused(length: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="needs a step and an example"):
        RunLength(*length)


@pytest.mark.parametrize("epochs", [0, -1])
def test_a_run_of_no_step_is_refused(epochs: float, world: small_runs.World, tmp_path: Path) -> None:
    for kind in ("plain", "lm"):
        with pytest.raises(ConfigError, match="is no step of training"):
            world.train(tmp_path / kind, kind, {"max_steps": -1, "num_train_epochs": epochs})
