"""A table of what somebody edits beside a model, and of the parts of its fingerprint that change, and no others."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import save_tiny_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tdistill.models.find import find_model
from tdistill.models.fingerprint import model_identity, weights_fingerprint
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import ModelError

PARTS = {"weights", "config", "tokenizer", "template", "generation_config", "code"}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A model with everything that a directory can hold: shards, a template, an EOS list, code, a README."""
    directory = save_tiny_model(tmp_path_factory.mktemp("model"))
    model, tokenizer = load_model(find_model(str(directory))), load_tokenizer(find_model(str(directory)))
    tokenizer.chat_template = TEMPLATE
    model.generation_config.eos_token_id = [256]
    shutil.rmtree(directory)
    model.save_pretrained(directory, max_shard_size="40KB")
    tokenizer.save_pretrained(directory)
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    change_json("config.json", auto_map={"AutoModelForCausalLM": "modelling_own.Own"})(directory)
    (directory / "modelling_own.py").write_text("from transformers import LlamaForCausalLM as Own\n")
    (directory / "README.md").write_text("A model.\n")
    return directory


def change_json(name: str, **keys: object):
    def edit(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return edit


def change_text(name: str, old: str, new: str):
    def edit(directory: Path) -> None:
        path = directory / name
        assert old in path.read_text(), "the edit must change something"
        path.write_text(path.read_text().replace(old, new))

    return edit


def change_weights(directory: Path) -> None:
    path = sorted(directory.glob("model-*.safetensors"))[1]
    save_file({k: v + 1e-3 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def point_index_to_another_file(directory: Path) -> None:
    """Leave the shards as they are, and let the index name a changed copy of one under another name."""
    old = sorted(directory.glob("model-*.safetensors"))[1]
    save_file({k: v + 1e-3 for k, v in load_file(old).items()}, directory / "other.safetensors", metadata={"format": "pt"})
    change_text("model.safetensors.index.json", old.name, "other.safetensors")(directory)


def point_index_to_a_link(directory: Path) -> None:
    """Let the index name a link to a file that lies in another directory, and change that file."""
    old = sorted(directory.glob("model-*.safetensors"))[1]
    elsewhere = directory.parent / "elsewhere.safetensors"
    save_file({k: v + 1e-3 for k, v in load_file(old).items()}, elsewhere, metadata={"format": "pt"})
    (directory / "linked.safetensors").symlink_to(elsewhere)
    change_text("model.safetensors.index.json", old.name, "linked.safetensors")(directory)


def write(name: str, content: bytes):
    def edit(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)

    return edit


def touch(directory: Path) -> None:
    for path in directory.iterdir():
        os.utime(path, (1, 1))


EDITS = {
    "a weight": (change_weights, {"weights"}),
    "the index names another file": (point_index_to_another_file, {"weights"}),
    "the index names a link to elsewhere": (point_index_to_a_link, {"weights"}),
    "a key of the configuration": (change_json("config.json", rms_norm_eps=1e-3), {"config"}),
    "the vocabulary": (change_text("tokenizer.json", '"a"', '"ä"'), {"tokenizer"}),
    "the normaliser": (change_json("tokenizer.json", normalizer={"type": "Lowercase"}), {"tokenizer"}),
    "the tokenizer's end of text": (change_json("tokenizer_config.json", eos_token="a"), {"tokenizer"}),
    "added tokens": (write("added_tokens.json", b'{"<new>": 260}'), {"tokenizer"}),
    "the template": (write("chat_template.jinja", b"{{ messages[-1].content }}"), {"template"}),
    "a second template": (write("additional_chat_templates/tool_use.jinja", b"{{ tools }}"), {"template"}),
    "the list of end-of-text tokens": (change_json("generation_config.json", eos_token_id=[256, 10]), {"generation_config"}),
    "another generation setting": (change_json("generation_config.json", pad_token_id=3), {"generation_config"}),
    "the model's own code": (write("modelling_own.py", b"from transformers import GPT2LMHeadModel as Own\n"), {"code"}),
    "a stray weight file": (write("stray.safetensors", b"\x02\0\0\0\0\0\0\0{}"), set()),
    "a README": (write("README.md", b"Another text.\n"), set()),
    "the state of an optimiser": (write("optimizer.pt", b"anything"), set()),
    "a program that wrote the configuration": (change_json("config.json", transformers_version="9.9"), set()),
    "the dtype of the file": (change_json("config.json", dtype="bfloat16"), set()),
    "times": (touch, set()),
}


@pytest.mark.parametrize(("edit", "changed"), EDITS.values(), ids=EDITS)
def test_an_edit_changes_its_own_part_of_the_fingerprint_and_no_other(sharded, tmp_path, edit, changed):
    directory = tmp_path / "a copy elsewhere"
    shutil.copytree(sharded, directory)
    before = identity(directory)
    assert before == identity(sharded), "the path does not count"
    assert before.keys() == PARTS
    edit(directory)
    after = identity(directory)
    assert {part for part in PARTS if before[part] != after[part]} == changed


def identity(directory: Path) -> dict[str, str]:
    return model_identity(find_model(str(directory)), trust_remote_code=True)


def test_code_that_is_not_run_does_not_count(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "copy")
    source = find_model(str(tmp_path / "copy"))
    before = model_identity(source)
    (tmp_path / "copy" / "modelling_own.py").write_text("another = 1\n")
    assert model_identity(source) == before
    plain = json.loads((tmp_path / "copy" / "config.json").read_text())
    del plain["auto_map"]
    (tmp_path / "copy" / "config.json").write_text(json.dumps(plain))
    trusted = model_identity(source, trust_remote_code=True)
    (tmp_path / "copy" / "modelling_own.py").write_text("yet_another = 1\n")
    assert model_identity(source, trust_remote_code=True) == trusted, "no class of its own is named"


def test_the_template_in_the_tokenizers_configuration_counts_where_it_has_no_file_of_its_own(sharded, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(sharded, directory)
    with_file = identity(directory)
    change_json("tokenizer_config.json", chat_template="{{ 'not read' }}")(directory)
    assert identity(directory) == with_file
    (directory / "chat_template.jinja").unlink()
    other = identity(directory)
    assert {part for part in PARTS if other[part] != with_file[part]} == {"template"}
    change_json("tokenizer_config.json", chat_template=TEMPLATE)(directory)
    assert identity(directory) == with_file, "the same template, wherever it stands"


def test_a_model_saved_again_has_the_same_weights_and_configuration(tiny_teacher, tmp_path):
    load_model(find_model(str(tiny_teacher))).save_pretrained(tmp_path / "copy")
    before, after = (model_identity(find_model(str(d))) for d in (tiny_teacher, tmp_path / "copy"))
    assert {part for part in PARTS if before[part] != after[part]} == {"tokenizer"}, "the copy was saved without a tokenizer"


def test_roll_out_caches_state_the_fingerprint_of_weights_and_configuration(tiny_teacher):
    """The digits are those of caches that exist: SHA-256 of the configuration, then of every weight file's size and content."""
    config = json.loads((tiny_teacher / "config.json").read_text())
    for key in ("transformers_version", "_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    content = (tiny_teacher / "model.safetensors").read_bytes()
    expected = hashlib.sha256(json.dumps(config, sort_keys=True).encode() + f"{len(content)}\n".encode() + content).hexdigest()[:16]
    assert weights_fingerprint(find_model(str(tiny_teacher))) == expected


def save_gguf(path: Path, template: str, weight: float) -> Path:
    """Write a GGUF file as ggml's own package does, with a vocabulary and weights that are larger than a sampled block."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(50_000)])
    writer.add_chat_template(template)
    writer.add_tensor("output.weight", np.full((1000, 1000), weight, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("template", "weight", "changed"), [("two", 1.0, {"config"}), ("one", 2.0, {"weights"}), ("one", 1.0, set())])
def test_a_gguf_file_tells_its_metadata_from_its_weights(tmp_path, template, weight, changed):
    before = model_identity(find_model(str(save_gguf(tmp_path / "before.gguf", "one", 1.0))))
    after = model_identity(find_model(str(save_gguf(tmp_path / "after.gguf", template, weight))))
    assert {part for part in PARTS if before[part] != after[part]} == changed


def test_adapters_count_as_weights_and_the_path_of_their_base_does_not(tiny_teacher, tmp_path):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_teacher), LoraConfig(r=2, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapters")
    whole, adapters = identity(tiny_teacher), identity(tmp_path / "adapters")
    assert {part for part in PARTS if whole[part] != adapters[part]} == {"weights"}
    shutil.copytree(tiny_teacher, tmp_path / "moved")
    change_json("adapter_config.json", base_model_name_or_path=str(tmp_path / "moved"))(tmp_path / "adapters")
    assert identity(tmp_path / "adapters") == adapters
    change_json("config.json", rms_norm_eps=1e-3)(tmp_path / "moved")
    changed = identity(tmp_path / "adapters")
    assert {part for part in PARTS if changed[part] != adapters[part]} == {"config"}
    change_json("adapter_config.json", lora_alpha=99)(tmp_path / "adapters")
    assert identity(tmp_path / "adapters")["weights"] != adapters["weights"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_damaged_file_is_refused(sharded, tmp_path, name):
    shutil.copytree(sharded, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text("[1]")
    with pytest.raises(ModelError, match=f"{name} must hold an object"):
        identity(tmp_path / "copy")
