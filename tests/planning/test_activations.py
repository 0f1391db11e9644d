"""What fake tensors say is kept for the backward pass is what a real forward pass keeps."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tdistill.models.layout import positions
from tdistill.models.lora import add_lora
from tdistill.planning.activations import _saved, activations

CONFIG = LlamaConfig(vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
LORA = {"r": 4, "target_modules": "all-linear"}


def model(device: str, lora: bool) -> torch.nn.Module:
    with torch.device(device):
        lm = LlamaForCausalLM(CONFIG)
        return add_lora(lm, LORA) if lora else lm


def really_kept(lora: bool, bfloat16: bool) -> int:
    lm = model("cpu", lora).train()
    own = {p.untyped_storage()._cdata for p in lm.parameters()}
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[0, :4] = 0
    body = lm.get_base_model().base_model if lora else lm.base_model
    with _saved() as seen, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        body(input_ids=mask, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    return sum(x.untyped_storage().nbytes() for key, x in seen.items() if key not in own)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_fake_tensors_count_what_a_real_forward_pass_keeps(lora, bfloat16):
    found = activations(model("meta", lora), 3, 20, bfloat16=bfloat16)
    assert found.counted
    assert found.kept == pytest.approx(really_kept(lora, bfloat16), rel=0.01)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    whole = activations(model("meta", False), 3, 20)
    cut = activations(model("meta", False), 3, 20, checkpointing=True)
    assert cut.kept == 4 * 3 * 3 * 20 * 64 + whole.kept // 3 < whole.kept


def test_a_model_that_fake_tensors_cant_run_gets_a_formula(monkeypatch):
    from tdistill.planning import activations as module

    def refuse(*_):
        raise module.DataDependentOutputException("aten.nonzero")

    monkeypatch.setattr(module, "_kept", refuse)
    found = activations(model("meta", False), 3, 20, bfloat16=True)
    assert not found.counted
    assert found.kept == 34 * 3 * 3 * 20 * 64
