"""Make a student from some of the teacher's layers, with its embeddings and its head."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tdistill.models.probe import rounding
from tdistill.models.weights import foreign
from tdistill.runtime.errors import ModelError

# Settings that are lists of layer numbers (Qwen-MoE, Bamba, LFM2, Llama 4, Mllama, Zamba), and those that count dense first layers.
LAYER_NUMBERS = frozenset(
    {"mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "moe_layers", "cross_attention_layers", "hybrid_layer_ids"}
)
DENSE_FIRST = frozenset({"first_k_dense_replace", "num_dense_layers"})
PROBED_TOKENS = 9


def outer_layers(total: int, kept: int) -> list[int]:
    """Return the first ⌈kept/2⌉ and the last ⌊kept/2⌋ layers: the middle ones are the cheapest to lose (measured in docs/LOG.md).

    Raises:
        ModelError: ``kept`` is not between 1 and ``total``.
    """
    check_layer_count(total, kept)
    first = (kept + 1) // 2
    return [*range(first), *range(total - (kept - first), total)]


def check_layer_count(total: int, kept: int) -> None:
    """Raise ``ModelError`` unless 1 ≤ kept ≤ total."""
    if not 1 <= kept <= total:
        raise ModelError(f"num_hidden_layers={kept}, but the teacher has {total} layers: ask for 1 to {total}.")


def prune_layers(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """Return a float32 copy of the teacher with only these of its decoder layers, in this order.

    Raises:
        ModelError: a layer that does not exist or is named twice, an architecture whose layers are no plain list, or one in which a
            layer does something else at its new place (see ``check_pruned``).
    """
    total = teacher.config.get_text_config().num_hidden_layers
    if len(set(layers)) != len(layers) or not layers or not all(0 <= i < total for i in layers):
        raise ModelError(f"keep_layers={layers} must name different layers from 0 to {total - 1}.")
    if getattr(teacher, "is_quantized", False):
        raise ModelError(f"A quantised {type(teacher).__name__} can't be pruned: give the model in 16 or 32 bits.")
    prefix = _layer_list_name(teacher, total)
    moved = {f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(layers)}
    state = {}
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(prefix + "."):
            state[name] = tensor
            continue
        old = prefix + "." + name[len(prefix) + 1 :].split(".")[0] + "."
        if old in moved:
            state[moved[old] + name[len(old) :]] = tensor
    with foreign(f"{type(teacher).__name__} can't be pruned to layers {layers}"):
        student = type(teacher)(pruned_config(teacher.config, layers)).to(torch.float32)
        student.load_state_dict({k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()})
    student.generation_config = copy.deepcopy(teacher.generation_config)
    check_pruned(teacher, student.eval(), layers)
    return student


def pruned_config(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """Return a copy of a configuration, cut to these layers.

    Lists with one entry for each layer are cut, and lists of layer numbers are renumbered. If another setting depends on the layers,
    ``check_pruned`` finds it.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    total, renumbered = text.num_hidden_layers, {old: new for new, old in enumerate(layers)}
    step = getattr(text, "decoder_sparse_step", 1)  # Qwen: every such layer is a mixture of experts, unless it is in mlp_only_layers
    if step > 1:
        text.mlp_only_layers = sorted({*text.mlp_only_layers, *(i for i in range(total) if (i + 1) % step)})
        text.decoder_sparse_step = 1
    for key, value in list(vars(text).items()):
        if key in LAYER_NUMBERS and isinstance(value, list):
            setattr(text, key, [renumbered[i] for i in value if i in renumbered])
        elif key in DENSE_FIRST and isinstance(value, int):
            setattr(text, key, next((new for new, old in enumerate(layers) if old >= value), len(layers)))
        elif isinstance(value, list | tuple) and len(value) == total and not key.endswith(("_id", "_ids")) and key != "architectures":
            setattr(text, key, type(value)(value[i] for i in layers))
    text.num_hidden_layers = len(layers)
    return config


@torch.inference_mode()
def check_pruned(teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int]) -> None:
    """Check that a pruned student computes what the teacher computes when the hidden state goes through these of its layers alone.

    Raises:
        ModelError: the logits differ. A layer may depend on its number, on other layers, or on a setting that pruning does not know.
    """
    name = type(teacher).__name__
    ids = torch.arange(1, 1 + PROBED_TOKENS, device=teacher.device).remainder(student.get_input_embeddings().weight.shape[0]).unsqueeze(0)
    with foreign(f"{name} can't be pruned to layers {layers}"):
        wanted = _without_other_layers(teacher, ids, layers).float().cpu()
        found = student(input_ids=ids.to(student.device), use_cache=False).logits.float().cpu()
    error, allowed = rounding(found, wanted, teacher.dtype)
    if not error <= allowed:  # NaN is refused too
        raise ModelError(
            f"{name} can't be pruned to layers {layers}: the student's logits differ from those of the teacher without its other layers by "
            f"{error:.2g} of their spread. Its layers depend on their number or on each other. Keep other layers, or give a pretrained "
            "student (student.init: pretrained)."
        )


def _without_other_layers(teacher: PreTrainedModel, ids: Tensor, layers: list[int]) -> Tensor:
    """Return the teacher's logits if its hidden state goes through ``layers`` alone. Each layer is called as the teacher calls it."""
    stack = teacher.get_submodule(_layer_list_name(teacher, teacher.config.get_text_config().num_hidden_layers))
    assert isinstance(stack, torch.nn.ModuleList)
    calls: dict[int, tuple[tuple, dict[str, Any]]] = {}

    def note(index: int) -> Any:
        def hook(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            calls[index] = (args, kwargs)

        return hook

    hooks = [layer.register_forward_pre_hook(note(i), with_kwargs=True) for i, layer in enumerate(stack)]
    try:
        teacher(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    hidden = _hidden(calls[0])
    for i in layers:
        out = stack[i](*_with_hidden(calls[i], hidden)[0], **_with_hidden(calls[i], hidden)[1])
        hidden = out[0] if isinstance(out, tuple) else out

    def replace(_: Any, __: Any, out: Any) -> Any:
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    last = stack[-1].register_forward_hook(replace)
    try:
        return teacher(input_ids=ids, use_cache=False).logits
    finally:
        last.remove()


def _hidden(call: tuple[tuple, dict[str, Any]]) -> Tensor:
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]


def _with_hidden(call: tuple[tuple, dict[str, Any]], hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
    args, kwargs = call
    return ((hidden, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": hidden})


def _layer_list_name(model: PreTrainedModel, total: int) -> str:
    """Return the name of the decoder's layer list. A vision tower or the experts of a layer may be lists of the same length."""
    with foreign(f"Can't tell the decoder layers of {type(model).__name__}"):
        inside = {id(m) for m in model.get_decoder().modules()}
    lists = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == total and id(m) in inside]
    outer = [n for n in lists if not any(n.startswith(other + ".") for other in lists)]
    if len(outer) != 1:
        raise ModelError(f"Can't tell the decoder layers of {type(model).__name__}: {len(outer)} module lists hold {total} modules.")
    return outer[0]
