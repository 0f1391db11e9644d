"""A pruned student is the teacher without its other layers, whatever a configuration says of each layer."""

import copy

import pytest
import torch
from architectures import CONFIGS
from transformers import AutoModelForCausalLM, PreTrainedModel

from tdistill.experiment.models import check_saved
from tdistill.models.find import ModelSource
from tdistill.models.load import load_model
from tdistill.models.prune import check_pruned, prune_layers, pruned_config
from tdistill.runtime.errors import ModelError


def teacher(architecture: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    for key, value in settings.items():
        setattr(config.get_text_config(), key, value)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def hand_on(_, args, kwargs, out):
    """Let a layer give what it got."""
    got = args[0] if args else kwargs["hidden_states"]
    return (got, *out[1:]) if isinstance(out, tuple) else got


IDS = torch.tensor([[5, 9, 200, 31, 7, 11, 90]])


@pytest.mark.parametrize("architecture", ["llama", "smollm3", "qwen3_moe", "gemma2", "gemma3", "gpt_neo", "deepseek_v3", "llama4_text", "gpt2"])
@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
def test_a_pruned_student_computes_what_the_teacher_does_without_its_other_layers(architecture, layers):
    full = teacher(architecture)
    student = prune_layers(full, layers)
    with torch.no_grad():
        stack = next(m for m in full.get_decoder().modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
        for i in {0, 1} - set(layers):
            stack[i].register_forward_hook(hand_on, with_kwargs=True)
        torch.testing.assert_close(student(IDS).logits, full(IDS, use_cache=False).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["smollm3", "qwen3_moe", "gemma3", "gpt_neo", "deepseek_v3", "llama4_text", "mixtral", "gpt_neox"])
def test_a_pruned_student_is_read_back_as_it_was(architecture, tmp_path):
    student = prune_layers(teacher(architecture), [1])
    student.save_pretrained(tmp_path)
    check_saved(student, ModelSource("student", tmp_path), False)
    loaded = load_model(ModelSource("student", tmp_path))
    assert loaded.config.get_text_config().num_hidden_layers == 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, student(IDS).logits)


def test_what_a_configuration_says_of_every_layer_is_cut():
    smol = CONFIGS["smollm3"]()
    smol.num_hidden_layers, smol.no_rope_layers, smol.layer_types = 4, [1, 1, 1, 0], ["full_attention"] * 4
    cut = pruned_config(smol, [0, 3])
    assert (cut.num_hidden_layers, cut.no_rope_layers, cut.layer_types) == (2, [1, 0], ["full_attention"] * 2)
    assert smol.no_rope_layers == [1, 1, 1, 0], "the teacher's is left as it is"
    moe = CONFIGS["qwen3_moe"]()
    moe.num_hidden_layers, moe.mlp_only_layers = 6, [1, 4]
    assert pruned_config(moe, [0, 4, 5]).mlp_only_layers == [1]
    moe.decoder_sparse_step = 2
    cut = pruned_config(moe, [0, 3, 4])
    assert (cut.mlp_only_layers, cut.decoder_sparse_step) == ([0, 2], 1)
    deep = CONFIGS["deepseek_v2"]()
    deep.num_hidden_layers, deep.first_k_dense_replace = 6, 2
    assert pruned_config(deep, [0, 4, 5]).first_k_dense_replace == 1
    assert pruned_config(deep, [0, 1]).first_k_dense_replace == 2


def test_lists_that_are_not_of_layers_are_left_alone():
    config = CONFIGS["llama"]()
    config.eos_token_id = [7, 256]
    assert pruned_config(config, [1]).eos_token_id == [7, 256]


@pytest.mark.parametrize(("architecture", "layers"), [("diffllama", [1]), ("deepseek_v3", [1, 0]), ("gemma3n_text", [0, 2])])
def test_layers_that_do_something_else_at_their_new_place_are_refused(architecture, layers):
    with pytest.raises(ModelError, match=rf"can't be pruned to layers \[{layers[0]}"):
        prune_layers(teacher(architecture), layers)


def test_the_check_finds_a_setting_that_pruning_forgot():
    full = teacher("smollm3")
    student = prune_layers(full, [1])
    wrong = copy.deepcopy(student.config)
    wrong.no_rope_layers = [1]
    other = type(full)(wrong).eval()
    other.load_state_dict(student.state_dict())
    with pytest.raises(ModelError, match="differ from those of the teacher without its other layers"):
        check_pruned(full, other, [1])
    check_pruned(full, student, [1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "smollm3", "olmoe", "qwen3_moe", "minimax"])
def test_a_teacher_of_16_bits_can_be_pruned(architecture, dtype):
    settings = {"num_hidden_layers": 6} | {k: v * 3 for k, v in vars(CONFIGS[architecture]()).items() if k in ("no_rope_layers", "layer_types")}
    assert prune_layers(teacher(architecture, **settings).to(dtype), [0, 2, 5]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_hide_no_layer_at_a_wrong_place(dtype):
    full = teacher("llama", num_hidden_layers=4).to(dtype)
    with pytest.raises(ModelError, match="differ from those of the teacher without its other layers"):
        check_pruned(full, prune_layers(full, [0, 3]), [0, 2])
