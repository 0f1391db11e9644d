"""``torch_compile`` compiles the layers in their place: the same student, saved and resumed as without."""

from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch

from tdistill.models.student import StudentModel
from tdistill.runtime.errors import ConfigError
from tdistill.training.argument_checks import check_training_arguments
from tdistill.training.compiled import compile_layers

# Traces as the default backend does, and needs no C++ compiler.
TRACED = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 4}
TARGET = {"name": "csil", "target_network": True, "anchor": "tail"}


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("objective", [{"name": "actor_critic"}, TARGET], ids=["a value head", "a target network"])
def test_a_compiled_run_ends_with_the_student_of_a_plain_one_also_after_a_kill(
    objective: dict[str, Any], world: small_runs.World, tmp_path: Path
) -> None:
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    world.train(plain, arguments={"max_steps": 4}, objective=objective)
    world.train(whole, arguments=TRACED, objective=objective, keep_checkpoints=True)
    mine, theirs = small_runs.weights(whole), small_runs.weights(plain)
    assert mine.keys() == theirs.keys()
    for name, wanted in theirs.items():
        torch.testing.assert_close(mine[name], wanted, rtol=0, atol=2e-3)  # Adam moved each weight by about 4e-2
    killed = small_runs.left_by_a_kill(whole, tmp_path / "killed", 2)
    world.train(killed, arguments=TRACED, objective=objective)
    small_runs.assert_same_weights(killed, whole)


def test_the_layers_are_compiled_and_nothing_else(world: small_runs.World) -> None:
    student = StudentModel(world.student())
    before = list(student.state_dict())
    compile_layers(student, "aot_eager", None)
    compiled = [type(m).__name__ for m in student.modules() if m._compiled_call_impl is not None]
    assert compiled == ["LlamaDecoderLayer"] * 2
    assert list(student.state_dict()) == before


def test_an_architecture_that_names_no_layers_is_refused(world: small_runs.World) -> None:
    lm = world.student()
    lm._no_split_modules = None
    with pytest.raises(ConfigError, match="torch_compile: LlamaForCausalLM does not name its layers"):
        compile_layers(StudentModel(lm), "aot_eager", None)


def test_a_compiler_that_is_not_there_is_found_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"'train\.arguments\.torch_compile': fastest can't be used here"):
        check_training_arguments({"torch_compile_backend": "fastest"}, "train.arguments")
    check_training_arguments({"torch_compile": True, "torch_compile_backend": "aot_eager"}, "train.arguments")
