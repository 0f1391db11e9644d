"""A student from its teacher: some of the layers, with embeddings and head kept."""

import copy

import torch
from transformers import PreTrainedModel

from tdistill.errors import ModelError


def outer_layers(total: int, kept: int) -> list[int]:
    """The first ⌈kept/2⌉ and the last ⌊kept/2⌋ layers: the middle ones are missed least (measured in docs/LOG.md).

    Raises:
        ModelError: more layers asked for than there are, or fewer than one.
    """
    check_layer_count(total, kept)
    first = (kept + 1) // 2
    return [*range(first), *range(total - (kept - first), total)]


def check_layer_count(total: int, kept: int) -> None:
    """Raise ``ModelError`` unless 1 ≤ kept ≤ total."""
    if not 1 <= kept <= total:
        raise ModelError(f"num_hidden_layers={kept}, but the teacher has {total} layers: ask for 1 to {total}.")


def prune_layers(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """A float32 copy of the teacher with only these of its decoder layers, in this order.

    Raises:
        ModelError: a layer that does not exist or is named twice, or an architecture whose layers are no plain list.
    """
    total = teacher.config.num_hidden_layers
    if len(set(layers)) != len(layers) or not layers or not all(0 <= i < total for i in layers):
        raise ModelError(f"keep_layers={layers} must name different layers from 0 to {total - 1}.")
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    # Some architectures describe every layer in the configuration.
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
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
    student = type(teacher)(config).to(torch.float32)
    student.load_state_dict({k: v.to(torch.float32) if v.is_floating_point() else v for k, v in state.items()})
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.eval()


def _layer_list_name(model: PreTrainedModel, total: int) -> str:
    lists = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == total]
    if len(lists) != 1:
        raise ModelError(f"Can't tell the decoder layers of {type(model).__name__}: {len(lists)} module lists hold {total} modules.")
    return lists[0]
