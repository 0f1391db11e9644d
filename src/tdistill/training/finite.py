"""Find NaN and infinity in weights before they are saved, and in metrics before they are used."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tdistill.runtime.errors import ModelError


def non_finite_weight(module: nn.Module) -> str | None:
    """Return the name of a parameter with NaN or infinity, or of a buffer with NaN, or None. Of a shard, this part is checked.

    A buffer may hold −∞, as an attention mask does.
    """
    return _first(module.named_parameters(), torch.isfinite) or _first(module.named_buffers(), lambda b: ~b.isnan())


def check_start(model: nn.Module, name: str) -> None:
    """Check that a student's weights are finite before it is trained: a student with another weight could never be saved.

    Args:
        model: the student.
        name: for the message.

    Raises:
        ModelError: a weight is NaN or infinite, even one of a token that no text holds.
    """
    if wrong := non_finite_weight(model):
        raise ModelError(
            f"{wrong} of the {name} is not finite before any training, and such a student is never saved: set those numbers to 0 in its "
            "files if they belong to no token, or choose another model."
        )


def non_finite_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with NaN, or None."""
    return _first(tensors.items(), lambda t: ~t.isnan())


def non_finite_metric(metrics: Mapping[str, float]) -> str | None:
    """Return the name of the first metric that is NaN or infinite, or None."""
    return next((name for name, value in metrics.items() if not math.isfinite(value)), None)


@torch.no_grad()
def _first(tensors: Iterable[tuple[str, Tensor]], is_right: Callable[[Tensor], Tensor]) -> str | None:
    names, flags = [], []
    for name, tensor in tensors:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if own.is_floating_point() and not own.is_meta:
            names.append(name)
            flags.append(is_right(own).all())
    if not flags:
        return None
    right = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()  # one transfer from the device
    return next((name for name, ok in zip(names, right, strict=True) if not ok), None)
