"""A directory that brings its own code: nothing of it runs unless the recipe asks for it."""

import json
from pathlib import Path

import pytest
from conftest import command, save_tiny_model, tiny_recipe_dict

from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import ModelError

CODE = """
from pathlib import Path
Path({trace!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type of its own, whose code leaves a trace when it is imported."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = save_tiny_model(tmp_path / "model")
    (model / "own.py").write_text(CODE.format(trace=str(tmp_path / "trace")))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((model / "config.json").read_text()) | {"model_type": "own", "auto_map": classes}
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return model


def test_code_beside_a_model_does_not_run_unasked(directory: Path) -> None:
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(find_model(str(directory)))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_tokenizer(find_model(str(directory)))
    assert not (directory.parent / "trace").exists()


def test_a_recipe_that_does_not_trust_it_ends_before_the_roll_outs(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(tiny_recipe_dict(directory, tmp_path)))
    assert command("run", recipe) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "run" / "rollouts").exists()


def test_code_that_is_trusted_runs(directory: Path) -> None:
    assert load_model(find_model(str(directory)), trust_remote_code=True).config.model_type == "own"
    assert (directory.parent / "trace").read_text() == "ran"
