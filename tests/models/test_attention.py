"""What computes a model's attention: the same numbers up to rounding, or another model, or an error before anything long."""

from pathlib import Path
from typing import Any

import places
import pytest
import torch
import yaml
from architectures import CONFIGS
from conftest import command, tiny_recipe_dict
from transformers import AutoModelForCausalLM

from tdistill.experiment.models import load_teacher
from tdistill.experiment.systems import load_system, systems
from tdistill.models.attention import check_attention, check_training_attention
from tdistill.models.find import ModelSource, find_model
from tdistill.models.forward import step_outputs
from tdistill.models.load import load_model
from tdistill.runtime.errors import ModelError

OPTION = "student.attn_implementation"


def saved(architecture: str, directory: Path) -> ModelSource:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[architecture]()).save_pretrained(directory)
    return find_model(str(directory))


def logits_by(source: ModelSource, attn_implementation: str) -> torch.Tensor:
    model = load_model(source, attn_implementation=attn_implementation)
    assert model.config._attn_implementation == attn_implementation
    ids = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0  # padding on the left
    with torch.no_grad():
        return step_outputs(model, ids, mask, 12)[0]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3_text", "falcon"])
def test_eager_and_sdpa_differ_by_rounding(architecture: str, tmp_path: Path) -> None:
    source = saved(architecture, tmp_path)
    eager, sdpa = (logits_by(source, name) for name in ("eager", "sdpa"))
    assert (eager - sdpa).abs().max() < 1e-4 * eager.std()


def test_for_falcon_with_alibi_they_are_two_models(tmp_path: Path) -> None:
    """In transformers 5.23 its eager attention adds the ALiBi biases twice. This is why the choice is in a student's identity."""
    source = saved("falcon-alibi", tmp_path)
    eager, sdpa = (logits_by(source, name) for name in ("eager", "sdpa"))
    assert (eager - sdpa).abs().max() > 1e-2 * eager.std()


def test_the_choice_is_not_written_into_the_model(tiny_teacher: Path, tmp_path: Path) -> None:
    load_model(find_model(str(tiny_teacher)), attn_implementation="eager").save_pretrained(tmp_path)
    assert "eager" not in (tmp_path / "config.json").read_text()
    assert load_model(find_model(str(tmp_path))).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("architecture", "name"), [("gemma2", "sdpa"), ("gpt2", "flex_attention"), ("bloom", "flash_attention_2")])
def test_what_an_architecture_does_not_have_is_refused_without_its_weights(architecture: str, name: str, tmp_path: Path) -> None:
    source = saved(architecture, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # nobody reads it
    with pytest.raises(ModelError, match=rf"'{OPTION}': {name} "):
        check_attention(source, name, OPTION)
    check_attention(source, "eager", OPTION)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes these gradients")
def test_an_implementation_that_only_reads_trains_no_student(tiny_teacher: Path) -> None:
    source = find_model(str(tiny_teacher))
    check_attention(source, "flex_attention", OPTION)  # a teacher may use it
    with pytest.raises(ModelError, match=rf"'{OPTION}': flex_attention can't train LlamaForCausalLM in float32 on cpu, set another or null"):
        check_training_attention(load_model(source, attn_implementation="flex_attention"), OPTION, None)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_check_of_a_training_step_leaves_no_gradient(name: str, autocast: torch.dtype | None, tiny_teacher: Path) -> None:
    model = load_model(find_model(str(tiny_teacher)), attn_implementation=name)
    check_training_attention(model, OPTION, autocast)
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def recipe(tiny_teacher: Path, tmp_path: Path) -> Path:
    raw: dict[str, Any] = tiny_recipe_dict(tiny_teacher, tmp_path)
    raw["teacher"]["attn_implementation"], raw["student"]["attn_implementation"] = "eager", "sdpa"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_teacher_and_student_compute_as_the_recipe_says_wherever_they_are_loaded(recipe: Path) -> None:
    made = places.made(recipe)
    assert load_teacher(made).config._attn_implementation == "eager"
    teacher, start = systems(made)[:2]
    assert load_system(made, teacher).config._attn_implementation == "eager"
    assert load_system(made, start).config._attn_implementation == "sdpa"
    swapped = places.made(recipe, ["student.attn_implementation=eager", "teacher.attn_implementation=null"])
    assert load_system(swapped, systems(swapped)[1]).config._attn_implementation == "eager"
    assert load_system(swapped, systems(swapped)[0]).config._attn_implementation == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes these gradients")
def test_a_student_that_can_not_be_trained_so_is_refused_before_the_roll_outs(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("rollout", recipe, "student.attn_implementation=flex_attention") == 2
    assert "'student.attn_implementation': flex_attention can't train" in " ".join(capsys.readouterr().err.split())
    assert not list(recipe.parent.glob("run/rollouts/*/shard-*"))
