"""Files are written by the package ``gguf``, ggml's own."""

import gguf
import pytest
from conftest import tiny_recipe_dict

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.preflight import preflight
from tdistill.models.gguf import gguf_config, read_scalars
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import DataError, ModelError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["<eos>", "häß", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.add_block_count(7)
    writer.add_context_length(512)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_int64("signed", -5)
    writer.add_name("a näme")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_scalars_behind_arrays_are_found(file):
    found = read_scalars(file)
    assert found == {
        "general.architecture": "llama",
        "llama.block_count": 7,
        "llama.context_length": 512,
        "llama.rope.freq_base": 1e5,
        "tokenizer.ggml.add_bos_token": False,
        "signed": -5,
        "general.name": "a näme",
    }
    assert gguf_config(file) == {"num_hidden_layers": 7, "max_position_embeddings": 512}


@pytest.mark.parametrize("cut", [4, 10, 40, -1, -20])
def test_a_truncated_file_is_refused(file, cut):
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="truncated or damaged"):
        read_scalars(file)


def test_what_is_no_gguf_is_refused(file):
    file.write_bytes(b"GGML" + file.read_bytes()[4:])
    with pytest.raises(ModelError, match="is no GGUF file"):
        read_scalars(file)
    file.write_bytes(b"GGUF" + (9).to_bytes(4, "little"))
    with pytest.raises(ModelError, match="GGUF version 9"):
        read_scalars(file)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": {"keep_layers": [0, 7]}}, ModelError, r"names \[7\], but the teacher has layers 0 to 6"),
        ({"student": {"num_hidden_layers": 8}}, ModelError, "num_hidden_layers=8, but the teacher has 7 layers"),
        ({"data": {"max_prompt_length": 501}}, DataError, "= 513 tokens, but the teacher model's context is 512"),
    ],
)
def test_a_gguf_teachers_layers_and_context_are_checked_before_it_is_loaded(file, tmp_path, change, error, message):
    settings = tiny_recipe_dict(file, tmp_path)
    settings["student"] = {"num_hidden_layers": 2}
    for section, values in change.items():
        settings[section] = ({} if section == "student" else settings[section]) | values
    with pytest.raises(error, match=message):
        preflight(Experiment(Recipe(**settings)))
