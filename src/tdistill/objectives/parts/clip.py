"""Clip from below, and keep the gradient that would raise a clipped value."""

import torch
from jaxtyping import Float
from torch import Tensor


class _ClipBelow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, floor):  # type: ignore[no-untyped-def]  # autograd's own signature
        ctx.save_for_backward(x < floor)
        return x.clamp(min=floor)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (below,) = ctx.saved_tensors
        # Descent raises x where its gradient is negative: that much may pass. A hard clip would leave a student that is most
        # wrong without any signal.
        return torch.where(below & (grad > 0), 0.0, grad), None


def clip_below(x: Float[Tensor, "*B"], floor: float) -> Float[Tensor, "*B"]:
    """Return max(x, floor). The gradient at clipped entries passes where descent would raise x, and is 0 elsewhere."""
    return _ClipBelow.apply(x, floor)
