"""Compute in at least float32, also where autocast would use fewer bits."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which operations on tensors of this device compute in the types of their inputs.

    A cast of the inputs is not enough: autocast casts the inputs of every matrix product itself.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class FullPrecisionLinear(nn.Linear):
    """Compute a linear map in at least float32, whatever the types of its input and of its parameters, and under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x·Wᵀ + b: [..., D] → [..., O]."""
        x = at_least_float32(x)
        with no_autocast(x):
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.weight.to(x.dtype), bias)
