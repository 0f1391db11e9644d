import json

import pytest
import torch
from conftest import save_tiny_model

from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import load_model
from tdistill.models.prune import outer_layers, prune_layers
from tdistill.models.tokenizer import check_same_vocabulary, eos_token_ids, load_tokenizer
from tdistill.runtime.errors import ModelError


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_model(find_model(str(tiny_teacher)))


@pytest.mark.parametrize("layers", [[0, 3], [1], [2, 0], [0, 1, 2, 3]])
def test_pruning_keeps_the_named_layers_and_all_that_is_no_layer(teacher, layers):
    student = prune_layers(teacher, layers)
    assert student.config.num_hidden_layers == len(student.model.layers) == len(layers)
    assert teacher.config.num_hidden_layers == 4
    for new, old in enumerate(layers):
        mine, theirs = student.model.layers[new].state_dict(), teacher.model.layers[old].state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
        assert student.model.layers[new].self_attn.layer_idx == new
    for name, tensor in teacher.state_dict().items():
        if ".layers." not in name:
            assert torch.equal(student.state_dict()[name], tensor)


def test_pruning_no_layer_gives_the_teacher(teacher):
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(prune_layers(teacher, [0, 1, 2, 3])(ids).logits, teacher(ids).logits)
        assert not torch.allclose(prune_layers(teacher, [0, 3])(ids).logits, teacher(ids).logits, atol=1e-3)


def test_a_pruned_student_shares_no_memory_with_its_teacher(teacher):
    student = prune_layers(teacher, [0, 3])
    before = teacher.lm_head.weight.clone()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(teacher.lm_head.weight, before)


@pytest.mark.parametrize("layers", [[], [0, 0], [4], [-1]])
def test_layers_that_do_not_exist_or_repeat_are_refused(teacher, layers):
    with pytest.raises(ModelError, match="must name different layers from 0 to 3"):
        prune_layers(teacher, layers)


@pytest.mark.parametrize(
    ("total", "kept", "expected"), [(4, 2, [0, 3]), (4, 3, [0, 1, 3]), (4, 1, [0]), (4, 4, [0, 1, 2, 3]), (30, 5, [0, 1, 2, 28, 29])]
)
def test_outer_layers(total, kept, expected):
    assert outer_layers(total, kept) == expected


@pytest.mark.parametrize("kept", [5, 0])
def test_too_many_layers_are_refused(kept):
    with pytest.raises(ModelError, match=f"num_hidden_layers={kept}, but the teacher has 4 layers"):
        outer_layers(4, kept)


def test_different_vocabularies_are_refused_by_name_size_and_first_token(tiny_teacher, tmp_path):
    student = save_tiny_model(tmp_path / "student", extra_tokens=2)
    mine, theirs = (load_tokenizer(find_model(str(d))) for d in (tiny_teacher, student))
    check_same_vocabulary(mine, mine, ("a", "a"))
    with pytest.raises(ModelError, match=r"'big' \(257 tokens\).*'small' \(259 tokens\).*token 257 is None and '<x0>'"):
        check_same_vocabulary(mine, theirs, ("big", "small"))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "nowhere.gguf", "a/b/c", "nobody/nothing"])
def test_a_missing_model_is_named(name):
    with pytest.raises(ModelError, match=f"No model at '{name}'"):
        find_model(name)


@pytest.mark.parametrize("name", ["~nobody-here/model", "m" * 5000], ids=["home", "long"])
def test_a_name_that_can_be_no_path_is_refused(name):
    with pytest.raises(ModelError, match="can't be read as a path"):
        find_model(name)


def test_a_directory_with_pickled_weights_only_is_refused(tiny_teacher, tmp_path):
    (tmp_path / "config.json").write_text((tiny_teacher / "config.json").read_text())
    with pytest.raises(ModelError, match="no \\*\\.safetensors"):
        find_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b'{"eos_token_id": [25', b"[]", b"\xff", b'{"eos_token_id": 1, "eos_token_id": 2}'])
def test_a_damaged_generation_config_is_refused_and_not_left_out(content, tmp_path):
    directory = save_tiny_model(tmp_path)
    (directory / "generation_config.json").write_bytes(content)
    with pytest.raises(ModelError, match="generation_config.json"):
        load_model(find_model(str(directory)))
    (directory / "generation_config.json").unlink()
    assert load_model(find_model(str(directory))).generation_config.eos_token_id is not None


def test_a_directory_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_model(str(tmp_path))


def test_an_unknown_packaged_model_names_the_known_ones():
    with pytest.raises(ModelError, match=r"Unknown packaged model 'packaged:gpt5'. Known: packaged:smollm2"):
        find_model("packaged:gpt5")


def test_damaged_weights_are_refused(tiny_teacher, tmp_path):
    (tmp_path / "config.json").write_text((tiny_teacher / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((tiny_teacher / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="Can't load"):
        load_model(find_model(str(tmp_path)))


def test_the_fingerprint_follows_weights_and_configuration(tiny_teacher, other_teacher, tmp_path):
    mine = weights_fingerprint(find_model(str(tiny_teacher)))
    assert mine != weights_fingerprint(find_model(str(other_teacher)))
    load_model(find_model(str(tiny_teacher))).save_pretrained(tmp_path / "copy")
    assert weights_fingerprint(find_model(str(tmp_path / "copy"))) == mine
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["rms_norm_eps"] = 1e-3
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert weights_fingerprint(find_model(str(tmp_path / "copy"))) != mine


def test_every_end_of_text_token_is_found(teacher, tiny_teacher):
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    assert eos_token_ids(teacher, tokenizer) == (256,)
    other = prune_layers(teacher, [0])
    other.generation_config.eos_token_id = [7, 256]
    assert eos_token_ids(other, tokenizer) == (7, 256)
    other.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="names an end-of-text token"):
        eos_token_ids(other, tokenizer)
