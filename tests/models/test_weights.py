"""A model is loaded whole or not at all, and never from a pickle."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from architectures import CONFIGS
from conftest import save_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tdistill.models.find import find_model, read_config
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import load_model
from tdistill.models.student import StudentModel
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import ModelError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def rewrite(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def load(directory: Path):
    return load_model(find_model(str(directory)))


def without(tensors: dict, name: str) -> dict:
    return {k: v for k, v in tensors.items() if k != name}


LAYER = "model.layers.1.mlp.up_proj.weight"


def test_a_missing_tensor_is_refused_by_name(directory):
    rewrite(directory, lambda t: without(t, LAYER))
    with pytest.raises(ModelError, match=rf"lacks 1 tensor \({LAYER}\).*random numbers"):
        load(directory)


def test_the_names_of_a_compiled_model_are_refused(directory):
    rewrite(directory, lambda t: {f"_orig_mod.{k}": v for k, v in t.items()})
    with pytest.raises(ModelError, match=r"lacks 39 tensors.*has 39 tensors \(_orig_mod\..*of a compiled or wrapped model"):
        load(directory)


def test_another_shape_is_refused_by_name(directory):
    rewrite(directory, lambda t: t | {LAYER: torch.zeros(47, 32)})
    with pytest.raises(ModelError, match=rf"holds 1 tensor \({LAYER} \[47, 32\], not \[48, 32\]\)"):
        load(directory)


def test_a_tensor_that_no_part_uses_is_named_in_a_line(directory, capsys):
    wanted = load(directory).state_dict()
    rewrite(directory, lambda t: t | {"model.extra.weight": torch.zeros(2)})
    found = load(directory).state_dict()
    assert "1 tensor (model.extra.weight) in its files belong to no part of LlamaForCausalLM" in capsys.readouterr().err
    assert all(torch.equal(found[k], v) for k, v in wanted.items())


def test_an_expert_that_is_missing_is_refused(tmp_path):
    AutoModelForCausalLM.from_config(CONFIGS["mixtral"]()).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: without(t, "model.layers.0.block_sparse_moe.experts.2.w1.weight"))
    with pytest.raises(ModelError, match="Can't load|lacks"):
        load(tmp_path)


def shard(directory: Path) -> dict:
    """Split the weights into two files with an index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = {k: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, k in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == file}, directory / file, {"format": "pt"})
    write_index(directory, names)
    return names


def write_index(directory: Path, names: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


def test_shards_are_loaded_as_one_model(directory):
    wanted = load(directory).state_dict()
    shard(directory)
    found = load(directory).state_dict()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())


def test_a_missing_shard_is_named(directory):
    shard(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names 'model-00002-of-00002\.safetensors', which is missing"):
        find_model(str(directory))


def test_an_index_that_lacks_a_tensor_is_refused(directory):
    names = shard(directory)
    for file in set(names.values()):
        path = directory / file
        save_file(without(load_file(path), LAYER), path, {"format": "pt"})
    write_index(directory, without(names, LAYER))
    with pytest.raises(ModelError, match=f"lacks 1 tensor.*{LAYER}"):
        load(directory)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a": "pytorch_model-00001.bin"}, "is no safetensors file and may be a pickle"),
        ({"a": "../other/model.safetensors"}, "outside its own directory"),
        ({"a": "/etc/passwd"}, "outside its own directory"),
        ({"a": 3}, "must hold a weight_map"),
        ({}, "must hold a weight_map"),
        ([], "must hold a weight_map"),
    ],
)
def test_an_index_that_names_something_else_is_refused(names, message, directory):
    shard(directory)
    write_index(directory, names)
    with pytest.raises(ModelError, match=message):
        find_model(str(directory))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"weight_map": ' + b"[" * 100_000])
def test_an_index_that_is_no_index_is_refused(content, directory):
    shard(directory)
    (directory / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        find_model(str(directory))


class Runs:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_under_the_name_of_safetensors_is_refused_by_name_and_not_run(zipped, directory, tmp_path):
    path, ran = directory / "model.safetensors", tmp_path / "ran"
    if zipped:
        torch.save({"a": Runs(ran)}, path)
    else:
        path.write_bytes(pickle.dumps(Runs(ran)))
    with pytest.raises(ModelError, match="is a pickle under the name of a safetensors file"):
        find_model(str(directory))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "pytorch_model.bin.index.json"])
def test_pickled_weights_alone_are_refused_by_name(name, directory):
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(ModelError, match=f"holds only pickled weights \\({name}\\)"):
        find_model(str(directory))


def test_a_pickle_beside_safetensors_is_not_read_and_that_is_said(directory, capsys):
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(directory / "ran")))
    load(directory)
    assert "pytorch_model.bin not read" in capsys.readouterr().err
    assert not (directory / "ran").exists()


def test_weights_under_a_name_that_nobody_reads_are_named(directory):
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"only consolidated\.safetensors: rename it"):
        find_model(str(directory))


def test_a_configuration_that_names_its_weights_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    with pytest.raises(ModelError, match="names its weights itself"):
        find_model(str(directory))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "no_such_model"},
        {"model_type": None},
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"num_hidden_layers": -1},
        {"rope_parameters": {"rope_type": "nonsense"}},
        {"hidden_act": "nonsense"},
        {"architectures": 3, "auto_map": 5},
        {"vocab_size": 10},
    ],
)
def test_a_configuration_that_transformers_refuses_is_one_error(change, directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError):
        load(directory)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_configuration_with_fewer_layers_than_the_files_is_refused(layers, directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(ModelError, match=rf"num_hidden_layers={layers}, but its files also hold.*model\.layers\.{layers}"):
        load(directory)


def test_an_encoder_decoder_is_refused_as_no_causal_language_model(tmp_path):
    save_tiny_model(tmp_path)
    CONFIGS["t5"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="as a causal language model"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"model": 3}', "{", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_tokenizer_that_cannot_be_read_is_one_error(content, directory):
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="Can't load a tokenizer"):
        load_tokenizer(find_model(str(directory)))


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_neox", "gemma3", "deepseek_v3"])
def test_a_student_whose_names_on_disk_are_others_is_read_back(architecture, tmp_path):
    torch.manual_seed(0)
    student = StudentModel.for_needs(AutoModelForCausalLM.from_config(CONFIGS[architecture]()), frozenset({"value"}))
    student.save_pretrained(tmp_path, student.state_dict())
    other = StudentModel.for_needs(AutoModelForCausalLM.from_config(CONFIGS[architecture]()), frozenset({"value"}))
    other.load_weights(tmp_path)
    wanted = student.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in other.state_dict().items())


def test_a_student_is_not_read_back_from_half_a_file(directory):
    student = StudentModel(load(directory))
    rewrite(directory, lambda t: without(t, LAYER))
    with pytest.raises(ModelError, match=rf"does not hold this student's weights.*{LAYER}"):
        student.load_weights(directory)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04."])
def test_a_value_head_that_cannot_be_read_is_one_error(content, directory):
    student = StudentModel(load(directory), value_head=True)
    student.save_pretrained(directory)
    path = directory / "value_head.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ModelError, match="does not hold this student's value head"):
        student.load_weights(directory)


def test_the_configuration_and_the_fingerprint_of_a_model_follow_its_files(directory):
    before = weights_fingerprint(find_model(str(directory)))
    assert read_config(directory)["num_hidden_layers"] == 4
    rewrite(directory, lambda t: t | {LAYER: t[LAYER] + 1})
    assert weights_fingerprint(find_model(str(directory))) != before


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 5 * 10**9), ("num_hidden_layers", 2**70), ("hidden_size", 70_000), ("vocab_size", 2**62), ("num_experts", 10**9)],
)
def test_a_configuration_beyond_its_weights_is_refused_before_a_model_is_built(key: str, value: int, nested: bool, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | ({"text_config": {key: value}} if nested else {key: value})))
    with pytest.raises(ModelError, match=rf"config\.json: {key} is {value}, but the weights beside it allow"):
        load_model(find_model(str(directory)))
