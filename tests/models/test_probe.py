"""What a model must offer is probed, and what is missing is named."""

import pytest
import torch
import yaml
from architectures import CONFIGS, TOKENS
from conftest import command, save_tiny_model, tiny_recipe_dict
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.models.find import find_model
from tdistill.models.forward import step_logp
from tdistill.models.load import load_model
from tdistill.models.probe import probe
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import ActionSpace, Sampling
from tdistill.runtime.errors import ModelError
from tdistill.teachers.transformers import generate_batch, score_batch


def tiny(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe", "gpt2"])
def test_a_model_that_offers_all_passes_in_every_dtype(architecture, dtype):
    probe(tiny(architecture).to(dtype), "teacher", TOKENS, hidden=True)


MISSING = {
    "mamba": "row selection",
    "rwkv": "padding",
    "bert": "causal",
    "openai-gpt": "cache",
    "gemma3n_text": "hidden state",
    "xlm": "forward",
}


@pytest.mark.parametrize("architecture", MISSING)
def test_a_property_that_is_missing_is_named_with_the_model(architecture):
    with pytest.raises(ModelError, match=f"teacher .*lacks the property '{MISSING[architecture]}'"):
        probe(tiny(architecture), "teacher", TOKENS, hidden=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", [*MISSING, "roberta", "electra"])
def test_16_bits_hide_no_missing_property(architecture, dtype):
    missing = MISSING.get(architecture, "causal")
    with pytest.raises(ModelError, match=f"teacher .*lacks the property '{missing}'"):
        probe(tiny(architecture).to(dtype), "teacher", TOKENS, hidden=True)


def test_a_hidden_state_that_no_value_head_reads_may_have_any_shape():
    probe(tiny("gemma3n_text"), "teacher", TOKENS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_no_finite_logits(value):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[7, 0] = value
    with pytest.raises(ModelError, match="lacks the property 'finite logits'"):
        probe(model, "teacher", TOKENS)


def test_a_damaged_padding_row_is_nobodys_logit():
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[TOKENS:] = float("nan")
    probe(model, "teacher", TOKENS)


def test_a_router_loss_is_refused_in_memory_and_switched_off_from_files(tmp_path, capsys):
    model = tiny("mixtral")
    model.config.output_router_logits = True
    with pytest.raises(ModelError, match="lacks the property 'router loss'.*set it to False"):
        probe(model, "student", TOKENS)
    model.save_pretrained(tmp_path)
    loaded = load_model(find_model(str(tmp_path)))
    assert "output_router_logits is switched off" in capsys.readouterr().err
    probe(loaded, "student", TOKENS)
    loaded.save_pretrained(tmp_path / "again")
    assert not load_model(find_model(str(tmp_path / "again"))).config.output_router_logits


class ForgetsPositions(nn.Module):
    """Gives every call the positions 0, 1, …, whatever it is given: padding then moves the logits."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args, position_ids=None, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_model_that_ignores_positions_is_refused():
    model = tiny("gpt2")
    model.transformer = ForgetsPositions(model.transformer)
    with pytest.raises(ModelError, match="lacks the property 'padding'"):
        probe(model, "teacher", TOKENS)


class Scaled(nn.Module):
    """A head whose logits depend on how many columns are asked for."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head, self.weight = head, head.weight

    def forward(self, hidden):
        return self.head(hidden) * (1.0 if hidden.shape[1] > 6 else 1.5)


def test_a_head_whose_logits_depend_on_the_columns_asked_for_is_refused():
    model = tiny("llama")
    model.lm_head = Scaled(model.lm_head)
    with pytest.raises(ModelError, match="lacks the property 'positions'"):
        probe(model, "teacher", TOKENS)


def prompt(name: str, *ids: int) -> TokenizedPrompt:
    return TokenizedPrompt(Prompt(name, ({"role": "user", "content": "?"},)), ids)


@pytest.fixture
def broken():
    """A model whose logits are NaN once it has read token 9."""
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    return model


def test_logits_that_stop_being_finite_name_the_prompt(broken):
    good, bad = prompt("good", 1, 2, 3), prompt("bad", 4, 9)
    with pytest.raises(ModelError, match="logits are not finite on prompt bad"):
        generate_batch(broken, [(good, 0), (bad, 0)], Sampling(max_completion_length=2), Vocabulary(TOKENS, [256]), ActionSpace())
    with pytest.raises(ModelError, match="logits are not finite on prompt bad"):
        score_batch(broken, [(good, [1, 2]), (bad, [3])], Vocabulary(TOKENS, [256]), ActionSpace())
    ids = torch.tensor([[1, 2, 3], [4, 9, 5]])
    with pytest.raises(ModelError, match="logits are not finite on row 1 of the batch"):
        step_logp(broken, ids, torch.ones_like(ids), 2, TOKENS)
    assert len(score_batch(broken, [(good, [1, 2])], Vocabulary(TOKENS, [256]), ActionSpace())) == 1


def test_a_recurrent_teacher_is_refused_before_the_first_roll_out(tmp_path, capsys):
    save_tiny_model(tmp_path / "teacher")
    tiny("mamba").save_pretrained(tmp_path / "teacher")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe_dict(tmp_path / "teacher", tmp_path)))
    assert command("rollout", path) == 2
    assert "lacks the property 'row selection'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "rollouts").exists()


def test_a_model_is_probed_where_its_weights_are_read_back(tmp_path):
    save_tiny_model(tmp_path)
    probe(load_model(find_model(str(tmp_path)), "bfloat16"), "teacher", TOKENS)
