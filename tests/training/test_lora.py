"""Adapters: what is trained, what is saved, and what does not fit."""

import json
from pathlib import Path

import places
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tdistill.cli import main
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tdistill.runtime.errors import ConfigError

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture
def recipe(tiny_recipe: Path) -> Path:
    content = yaml.safe_load(tiny_recipe.read_text())
    content["train"] |= {"peft": {"lora": LORA}, "baselines": {}, "objective": {"name": "csil", "anchor": "tail"}}
    content["train"]["arguments"]["learning_rate"] = 1e-2
    tiny_recipe.write_text(yaml.safe_dump(content))
    return tiny_recipe


def call(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    monkeypatch.setattr("sys.argv", ["tdistill", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code


@pytest.mark.parametrize("merge", [False, True])
def test_a_run_with_adapters(merge: bool, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [f"train.peft.merge={str(merge).lower()}", "train.arguments.activation_checkpointing=true"]
    call(monkeypatch, "run", recipe, *overrides)
    student, start = places.student(recipe, overrides), places.sft(recipe, overrides)
    assert (student / ADAPTER_CONFIG).exists() is not merge
    assert (student / "value_head.safetensors").exists()
    whole, before = load_model(find_model(str(student))), load_model(find_model(str(start)))
    changed = [name for (name, a), b in zip(whole.named_parameters(), before.parameters(), strict=True) if not torch.equal(a, b)]
    assert changed
    assert all("proj" in name for name in changed), "embeddings, norms and head are the start's"
    rank = torch.linalg.matrix_rank(whole.model.layers[0].mlp.up_proj.weight - before.model.layers[0].mlp.up_proj.weight, rtol=1e-4)
    assert 1 <= rank <= 4
    if merge:
        assert AutoModelForCausalLM.from_pretrained(student).config.num_hidden_layers == 2
    else:
        assert load_file(student / ADAPTER_WEIGHTS)
        assert not (student / "model.safetensors").exists()
    # What training measured is what evaluation, which loads from disk, measures: the best checkpoint was read back.
    history = json.loads((student / "log_history.json").read_text())
    losses = {h["step"]: h["eval_loss"] for h in history["history"] if "eval_loss" in h}
    assert history["best_step"] == min(losses, key=losses.get)
    assert history["validation"]["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)


def test_arguments_are_checked_before_anything_starts(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.peft\.lora\.lora_alfa is no argument of peft\.LoraConfig\. Did you mean 'lora_alpha'"):
        open_recipe(recipe, ["train.peft.lora={lora_alfa: 4}"])


def test_modules_that_the_student_does_not_have_are_named(tiny_teacher: Path) -> None:
    from tdistill.models.lora import add_lora

    with pytest.raises(ConfigError, match=r"does not fit the student.*down_proj, gate_proj"):
        add_lora(load_model(find_model(str(tiny_teacher))), {"r": 4, "target_modules": ["c_attn"]})
