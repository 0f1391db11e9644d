"""A model's readout is found by what the model does: scale, cap, bias, padded rows; what can't be read is refused, never guessed."""

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from architectures import CONFIGS, _config
from head_worlds import VOCAB, batch, language_model, run
from test_architecture_matrix import REFUSED
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tdistill.models.forward import step_outputs
from tdistill.models.head.blocks import Block
from tdistill.models.head.readout import After, Readout, find_after, first_column, replaced_head
from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.recipe.schema import HeadConfig
from tdistill.runtime.errors import ModelError
from tdistill.training.batch import OnlineTeacher

KNOWN = {
    "gemma2": After(1.0, 30.0),
    "recurrent_gemma": After(1.0, 30.0),
    "cohere": After(0.5),
    "cohere2": After(0.0625),
    "granite": After(0.5),
    "xlstm": After(1.0, 30.0),
    "gemma3n_text": After(1.0, 30.0),
}
READ = sorted(CONFIGS.keys() - {"t5", *(name for name, why in REFUSED.items() if why == "forward")})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", READ)
def test_hidden_states_times_the_weight_and_what_follows_are_the_models_logits(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if name.startswith("qwen2_") and "vl" in name else AutoModelForCausalLM
    lm = auto.from_config(CONFIGS[name]()).to(dtype).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = find_after(lm)
    assert after == KNOWN.get(name, After())
    ids = torch.randint(0, 250, (2, 9))
    head = lm.get_output_embeddings()
    with torch.no_grad():
        want = step_outputs(lm, ids, torch.ones_like(ids), 4)[0].float()
        with replaced_head(lm, first_column) as seen:
            step_outputs(lm, ids, torch.ones_like(ids), 4)
        found = Readout(head.weight, head.bias, after).logits(seen[0][:, -4:])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, want, atol=tolerance, rtol=tolerance)
    assert "forward" not in vars(head), "the head is its own again"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "change", "after"),
    [
        ("granite", {"logits_scaling": 6.0}, After(1 / 6)),
        ("cohere", {"logit_scale": 0.8333, "tie_word_embeddings": True}, After(0.8333)),
        ("gemma2", {"final_logit_softcapping": 33.3, "query_pre_attn_scalar": 8}, After(1.0, 33.3)),
    ],
)
def test_scale_and_cap_do_not_take_the_precision_of_the_weights(kind: str, change: dict, after: After, dtype: torch.dtype) -> None:
    """In bfloat16 a scale of 1/6 would be off by two thousandths, and a cap of 33.3 by .05."""
    found = find_after(AutoModelForCausalLM.from_config(_config(kind, **change)).to(dtype))
    assert found.scale == pytest.approx(after.scale, rel=1e-11)
    assert found.cap == after.cap


def test_a_head_that_accelerate_moves_is_left_to_accelerate() -> None:
    lm = language_model()
    add_hook_to_module(lm.lm_head, ModelHook())
    moved = vars(lm.lm_head)["forward"]
    with pytest.raises(ModelError, match="moved or sharded by another library"):
        find_after(lm)
    assert vars(lm.lm_head)["forward"] is moved
    assert OnlineTeacher(lm, VOCAB).read(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long), 2)(Block()).shape == (1, 2, VOCAB)
    assert vars(lm.lm_head)["forward"] is moved


def test_measuring_a_head_leaves_every_module_in_its_mode() -> None:
    lm = language_model().train()
    lm.model.layers[0].eval()
    find_after(lm)
    assert lm.training
    assert not lm.model.layers[0].mlp.training
    assert lm.model.layers[1].mlp.training


class Odd(nn.Module):
    """A language model's head that does something of its own."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).relu()


def hooked(change: Any) -> Any:
    lm = language_model()
    lm.lm_head.register_forward_hook(lambda *given: change(given[-1]))
    return lm


def odd_head() -> Any:
    lm = language_model()
    lm.lm_head = Odd(lm.lm_head)
    return lm


def past_the_head() -> Any:
    """A model that multiplies with the weight itself."""
    lm = language_model()
    head, body = lm.lm_head, lm.forward

    def forward(*given: Any, **named: Any) -> Any:
        out = body(*given, **named)
        out.logits = out.logits[..., :1] * torch.arange(1.0, len(head.weight) + 1)
        return out

    lm.forward = forward
    return lm


UNREADABLE = {
    "another module": (odd_head, "is a Odd, not a linear layer"),
    "a power": (lambda: hooked(lambda x: x.sign() * x.abs().sqrt()), "neither a scale nor a soft cap"),
    "a shift": (lambda: hooked(lambda x: x + 1.0), "neither a scale nor a soft cap"),
    "a factor for each token": (lambda: hooked(lambda x: x * torch.linspace(0.5, 2.0, x.shape[-1], dtype=x.dtype)), "neither a scale nor"),
    "another width": (past_the_head, "is not what gives the logits"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_head_that_can_not_be_read_is_refused_by_name_and_left_alone_by_auto(case: str) -> None:
    make, message = UNREADABLE[case]
    student = StudentModel(make())
    for name in ("chunked", "candidates", "sampled"):
        with pytest.raises(ModelError, match=message):
            student.use_head(HeadConfig(name=name))
    student.use_head(HeadConfig())
    assert student.head.name == "full"
    assert student.head.after is None


def test_adapters_on_the_head_are_refused_and_adapters_on_the_body_are_not() -> None:
    from tdistill.models.lora import add_lora

    def adapted(modules: str) -> StudentModel:
        return StudentModel(add_lora(language_model(dtype=torch.float32), {"r": 2, "target_modules": [modules]}))

    with pytest.raises(ModelError, match="not a linear layer"):
        adapted("lm_head").use_head(HeadConfig(name="chunked"))
    student, given = adapted("q_proj"), batch(dtype=torch.float32)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    truth = run(student, given, bind("reverse_kl"), "full")
    found = run(student, given, bind("reverse_kl"), "chunked")
    assert found.gradients.keys() == truth.gradients.keys()
    assert all("lora" in name for name in found.gradients)
    assert found.distance(truth) < 1e-4


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    student, given = StudentModel(language_model()), batch()
    truth = run(student, given, bind("reverse_kl"), "full")
    student.train()
    student.activation_checkpointing_enable()
    for head in ("chunked", "full"):
        assert run(student, given, bind("reverse_kl"), head).distance(truth) < 1e-9
