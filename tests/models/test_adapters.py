"""Adapters: as models by their directory, of tied weights refused, and saved as they were validated."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import command, save_tiny_model, tiny_recipe_dict
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tdistill.experiment.sample import answer
from tdistill.models.find import find_model, read_config
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import load_model
from tdistill.models.lora import add_lora
from tdistill.models.student import StudentModel
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import ConfigError, ModelError

IDS = torch.tensor([[5, 9, 200, 31]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def noisy(adapted) -> PeftModel:
    """Adapters start as zeros: give them something to say."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return adapted.eval()


def save_adapters(directory: Path, base: Path, named: str | None = None) -> PeftModel:
    adapted = noisy(
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    )
    adapted.save_pretrained(directory)
    if named is not None:
        change_config(directory, base_model_name_or_path=named)
    return adapted


def change_config(directory: Path, **values: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def adapters(base, tmp_path) -> Path:
    save_adapters(tmp_path / "adapters", base)
    return tmp_path / "adapters"


def test_a_directory_of_adapters_loads_as_the_adapted_model(base, tmp_path):
    adapted = save_adapters(tmp_path, base)
    source = find_model(str(tmp_path))
    torch.testing.assert_close(logits(load_model(source)), logits(adapted), atol=1e-4, rtol=1e-4)
    assert (logits(load_model(source)) - logits(load_model(find_model(str(base))))).abs().max() > 0.1
    assert read_config(tmp_path)["num_hidden_layers"] == 4
    assert len(load_tokenizer(source)) == 257, "the base's, where the adapters have none"
    assert answer(tmp_path, "question", 1.0, 1.0, 4, 0)


def test_the_fingerprint_follows_adapters_and_base(base, adapters, tmp_path):
    before = weights_fingerprint(find_model(str(adapters)))
    assert before == weights_fingerprint(find_model(str(adapters)))
    path = adapters / "adapter_model.safetensors"
    save_file({k: v + 1 for k, v in load_file(path).items()}, path)
    changed = weights_fingerprint(find_model(str(adapters)))
    other = save_tiny_model(tmp_path / "other", seed=5)
    change_config(adapters, base_model_name_or_path=str(other))
    assert len({before, changed, weights_fingerprint(find_model(str(adapters)))}) == 3


@pytest.mark.parametrize("named", ["../model", "model"])
def test_a_relative_base_is_looked_up_from_the_adapters_then_from_here(named, base, tmp_path, monkeypatch):
    where = tmp_path / "model" if named == "../model" else tmp_path / "here" / "model"
    shutil.copytree(base, where)
    save_adapters(tmp_path / "adapters", base, named)
    monkeypatch.chdir(where.parent if named == "model" else "/")
    assert load_model(find_model(str(tmp_path / "adapters"))).config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("/nowhere/base", "that base model can't be used: No model at '/nowhere/base'"),
        ("~nobody-here/base", "can't be read as a path"),
        (None, "must name its base model"),
        (3, "must name its base model"),
        ("", "must name its base"),
    ],
)
def test_a_base_that_is_not_there_is_named(named, message, adapters):
    change_config(adapters, base_model_name_or_path=named)
    with pytest.raises(ModelError, match=message):
        find_model(str(adapters))


def test_adapters_of_adapters_are_added_one_after_the_other(base, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_adapters(first, base)
    merged = load_model(find_model(str(first)))
    merged.save_pretrained(tmp_path / "merged")
    adapted = save_adapters(second, tmp_path / "merged", str(first))
    torch.testing.assert_close(logits(load_model(find_model(str(second)))), logits(adapted), atol=1e-4, rtol=1e-4)


def test_adapters_of_themselves_are_refused(adapters):
    change_config(adapters, base_model_name_or_path=str(adapters))
    with pytest.raises(ModelError, match="correct base_model_name_or_path"):
        find_model(str(adapters))


def test_pickled_adapters_are_refused_by_name(adapters):
    (adapters / "adapter_model.safetensors").rename(adapters / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"only a pickle \(adapter_model\.bin\)"):
        find_model(str(adapters))


def test_adapters_that_lack_a_tensor_are_refused(adapters):
    path = adapters / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)
    with pytest.raises(ModelError, match="does not hold this model's adapters"):
        load_model(find_model(str(adapters)))


@pytest.mark.parametrize("change", [{"r": 3}, {"peft_type": "nonsense"}, {"target_modules": ["nowhere"]}, {"r": "two"}])
def test_adapters_whose_configuration_does_not_fit_are_one_error(change, adapters):
    change_config(adapters, **change)
    with pytest.raises(ModelError):
        load_model(find_model(str(adapters)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_an_adapter_configuration_that_is_no_json_object_is_one_error(content, adapters):
    (adapters / "adapter_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        find_model(str(adapters))


def test_adapters_of_another_kind_load_where_they_can_be_merged(base, tmp_path):
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    adapted = noisy(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config))
    adapted.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_model(find_model(str(tmp_path)))), logits(adapted), atol=1e-4, rtol=1e-4)


def test_a_quantised_model_of_adapters_is_refused(adapters, monkeypatch):
    monkeypatch.setattr("tdistill.models.load.check_quantization", lambda config: None)  # bitsandbytes is not installed here
    with pytest.raises(ModelError, match="can't be merged into a quantised model"):
        load_model(find_model(str(adapters)), quantization={"quant_method": "bitsandbytes", "load_in_8bit": True})


def test_a_run_takes_adapters_as_teacher_and_as_student(base, adapters, tmp_path):
    recipe = tiny_recipe_dict(adapters, tmp_path)
    recipe["student"] = {"init": "pretrained", "student_model_name_or_path": str(adapters)}
    recipe["train"] |= {"baselines": {}, "objective": {"name": "reverse_kl"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert command("rollout", path) == 0


# Tied weights.


def tied_model() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=304, tie_word_embeddings=True, initializer_range=0.2, **shape)).eval()


HITS = {
    "the head": {"target_modules": ["lm_head"]},
    "the embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "a pattern": {"target_modules": ".*(head|q_proj)"},
    "a saved module": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
}


@pytest.mark.parametrize("hit", HITS)
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_tied_weights_are_refused(hit):
    with pytest.raises(ConfigError, match=r"shares between modules \(.*embed_tokens\.weight, lm_head\.weight\).*tie_word_embeddings: false"):
        add_lora(tied_model(), {"r": 2, **HITS[hit]})


def untied_model() -> PreTrainedModel:
    model = tied_model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


FITS = {
    "all linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "a saved norm": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "the embeddings": {"target_modules": ["embed_tokens"]},
    "a saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 9]},
}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    ("fits", "is_tied"),
    [(k, tied) for k in FITS for tied in (False, True) if not tied or ("head" not in k and k not in ("the embeddings", "trained tokens"))],
)
@pytest.mark.filterwarnings("ignore")
def test_the_student_that_is_saved_is_the_one_that_was_measured(fits, is_tied, merge, tmp_path):
    make = tied_model if is_tied else untied_model
    make().save_pretrained(tmp_path / "base")
    model = load_model(find_model(str(tmp_path / "base")))
    student = StudentModel(noisy(add_lora(model, {"r": 2, **FITS[fits]})))
    measured = logits(student.lm)
    assert (measured - logits(make())).abs().max() > 1e-3, "the adapters do something"
    if merge:
        student.lm = student.lm.merge_and_unload()
    student.save_pretrained(tmp_path / "student")
    torch.testing.assert_close(logits(load_model(find_model(str(tmp_path / "student")))), measured, atol=1e-4, rtol=1e-4)
    if not merge:
        again = StudentModel(add_lora(load_model(find_model(str(tmp_path / "base"))), {"r": 2, **FITS[fits]}).eval())
        again.load_weights(tmp_path / "student")
        torch.testing.assert_close(logits(again.lm), measured, atol=1e-4, rtol=1e-4)


def test_a_recipe_whose_adapters_hit_tied_weights_ends_before_the_roll_outs(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "tied")
    model = tied_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = 256
    model.save_pretrained(tmp_path / "tied")
    recipe = tiny_recipe_dict(tmp_path / "tied", tmp_path)
    recipe["student"]["num_hidden_layers"] = 1
    recipe["train"] |= {"baselines": {}, "objective": {"name": "reverse_kl"}, "peft": {"lora": {"r": 2, "target_modules": ["lm_head"]}}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert command("run", path) == 2
    assert "adapts weights that the student shares between modules" in capsys.readouterr().err
    assert not (tmp_path / "run" / "rollouts").exists()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"lora_bias": True}, "lora_bias: .*q_proj has no bias that it could be added to"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is not supported: it makes another model"),
    ],
)
def test_adapters_that_could_not_be_loaded_again_are_refused_before_training(lora, message, base):
    with pytest.raises(ConfigError, match=message):
        add_lora(load_model(find_model(str(base))), {"r": 2, **lora})
