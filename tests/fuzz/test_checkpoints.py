"""Damaged model directories: the model that was there, one that its files describe, or refused by name."""

import contextlib
import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import command
from safetensors.torch import load_file, save_file

from fuzz.mutate import HOSTILE, mutated_bytes, mutated_values
from tdistill.models.find import find_model, read_config
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import load_model
from tdistill.models.tokenizer import eos_token_ids, load_tokenizer, tokenizer_fingerprint
from tdistill.runtime.errors import ModelError

JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json")
TEXT = "Why? <eos> 7 é"
DAMAGES = {
    "missing": None,
    "empty": b"",
    "garbage": b"\x00\xff garbage {",
    "null": b"null",
    "list": b"[1]",
    "object": b"{}",
    "number": b"7",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "NaN": b'{"vocab_size": NaN}',
}


@pytest.fixture(scope="module")
def sharded(tiny_teacher, tmp_path_factory) -> Path:
    """The tiny teacher in two shards and their index."""
    directory = tmp_path_factory.mktemp("sharded") / "model"
    load_model(find_model(str(tiny_teacher))).save_pretrained(directory, max_shard_size="120KB")
    load_tokenizer(find_model(str(tiny_teacher))).save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


@pytest.fixture(scope="module")
def single(tiny_teacher, tmp_path_factory) -> Path:
    return shutil.copytree(tiny_teacher, tmp_path_factory.mktemp("single") / "model")


def use(directory: Path):
    """Do what a run does with a model: find, describe, fingerprint, load, tokenise, and one forward."""
    source = find_model(str(directory))
    config, fingerprint = read_config(source.directory), weights_fingerprint(source)
    model, tokenizer = load_model(source), load_tokenizer(source)
    ids = tokenizer(TEXT).input_ids
    return config, fingerprint, model, (tokenizer_fingerprint(tokenizer), ids, eos_token_ids(model, tokenizer))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(7).unsqueeze(0)).logits


def is_right(valid, damaged_name: str):
    """Say what may be accepted: weights are those of the file; an edited configuration or tokenizer is another one, and valid."""

    def judge(_, result) -> bool:
        config, _, model, described = result
        weights, known = model.state_dict(), valid[2].state_dict()
        if any(torch.equal(weights[k], known[k]) is False for k in weights.keys() & known.keys() if weights[k].shape == known[k].shape):
            return damaged_name.endswith(".safetensors")
        if damaged_name.startswith("tokenizer"):
            return torch.equal(logits(model), logits(valid[2]))
        if damaged_name == "config.json":
            return isinstance(config, dict) and config != {} and all(v >= 0 for v in described[2])
        return described[:2] == valid[3][:2]

    return judge


def fuzz_directory(outcomes, directory: Path, name: str, inputs) -> None:
    path, valid = directory / name, use(directory)
    content = path.read_bytes()

    def attempt(new):
        path.write_bytes(new)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return use(directory)

    outcomes(f"models: {name.split('.')[-2]}", inputs, attempt, is_right(valid, name))
    path.write_bytes(content)


def json_inputs(path: Path, count: int, seed: int):
    content = path.read_bytes()
    yield from mutated_bytes(content, seed, count // 2)
    for value in mutated_values(json.loads(content), seed, count - count // 2):
        try:
            yield json.dumps(value).encode()
        except (ValueError, UnicodeEncodeError):  # no JSON file can hold it
            continue


def fuzz(outcomes, single: Path, sharded: Path, tmp_path: Path, count: int, seed: int) -> None:
    for i, name in enumerate(JSON_FILES):
        directory = shutil.copytree(sharded if "index" in name else single, tmp_path / name)
        fuzz_directory(outcomes, directory, name, json_inputs(directory / name, count, seed + i))
    directory = shutil.copytree(single, tmp_path / "weights")
    content = (directory / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    headers = (new + content[end:] for new in mutated_bytes(content[:end], seed, count))
    fuzz_directory(outcomes, directory, "model.safetensors", headers)


def test_damaged_model_directories(outcomes, single, sharded, tmp_path):
    fuzz(outcomes, single, sharded, tmp_path, 36, 1)


@pytest.mark.slow
def test_many_damaged_model_directories(outcomes, single, sharded, tmp_path):
    fuzz(outcomes, single, sharded, tmp_path, 350, 11)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors"])
def test_a_damaged_file_of_a_model_is_refused_or_not_needed(single, sharded, tmp_path, name, damage):
    directory = shutil.copytree(sharded if "index" in name else single, tmp_path / "model")
    valid = use(directory)
    (directory / name).unlink()
    if DAMAGES[damage] is not None:
        (directory / name).write_bytes(DAMAGES[damage])
    if name in ("generation_config.json", "tokenizer_config.json"):
        with contextlib.suppress(ModelError):  # not needed: a model without them is whole
            assert torch.equal(logits(use(directory)[2]), logits(valid[2]))
        return
    with pytest.raises(ModelError, match=re.escape(str(directory))):
        use(directory)


VALUES = [v for v in HOSTILE if not isinstance(v, int) or abs(v) < 10**300]


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "eos_token_id", "architectures"]
)
def test_hostile_values_in_a_configuration(outcomes, single, tmp_path, key):
    directory = shutil.copytree(single, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    fuzz_directory(outcomes, directory, "config.json", [json.dumps(config | {key: v}).encode() for v in VALUES if v != "\ud800"])


def test_the_command_line_names_a_damaged_teacher(single, tiny_recipe, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        directory = shutil.copytree(single, tmp_path / name)
        (directory / name).write_bytes((directory / name).read_bytes()[:50])
        assert command("run", tiny_recipe, f"teacher.teacher_model_name_or_path={directory}") == 2
        error = capsys.readouterr().err
        assert "tdistill: error:" in error
        assert str(directory) in error


def test_a_tensor_of_another_type_or_shape(single, tmp_path):
    directory = shutil.copytree(single, tmp_path / "model")
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file({k: v.to(torch.int8) if "lm_head" in k else v for k, v in weights.items()}, path, {"format": "pt"})
    model = None
    try:
        model = load_model(find_model(str(directory)))
    except ModelError:
        return
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].to(torch.int8).float())
