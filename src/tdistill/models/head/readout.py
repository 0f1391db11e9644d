"""Find a language model's own readout: the linear map of its head, and what the model does to the logits after it.

An architecture may divide its logits, multiply them, or cap them. No configuration key says it in one way, so it is measured: the head
is replaced by known numbers for one call, and what the model makes of them is compared with the functions that are known here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tdistill.models.precision import at_least_float32, no_autocast
from tdistill.models.probe import rounding
from tdistill.models.weights import foreign
from tdistill.runtime.errors import ModelError

# Raw logits that are sent through the model: small ones show the scale, large ones a cap.
GRID = (-3e4, -300.0, -60.0, -30.0, -7.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 7.0, 30.0, 60.0, 300.0, 3e4)
OTHERWISE = "use head: full, which runs the model's own code."
# What comes out, by its type: how far it may be off, and the digits that it tells of a scale or cap. Fewer bits tell too few.
PRECISION = {torch.float64: (1e-9, 12), torch.float32: (1e-5, 6)}


@dataclass(frozen=True)
class After:
    """Hold what a model does to the output x of its head: f(x) = scale·x, or cap·tanh(scale·x/cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Return f(raw), in at least float32. It may share the memory of ``raw``."""
        x = at_least_float32(raw)
        if self.scale != 1.0:
            x = x * self.scale
        return x if self.cap is None else torch.tanh(x / self.cap) * self.cap

    def pull(self, logits: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the gradient of ``raw``, of that of the logits f(raw). It writes into ``gradient``; ``logits`` are read if there is a cap."""
        if self.cap is not None:
            assert logits is not None
            gradient.mul_(1.0 - (logits / self.cap).square())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


@dataclass(frozen=True)
class Readout:
    """Hold what makes logits of the head's input h: ℓ = f(h·Wᵀ + b), for the first ``vocab_size`` rows of W (None: all rows)."""

    weight: Float[Tensor, "rows D"]
    bias: Float[Tensor, " rows"] | None = None
    after: After = After()
    vocab_size: int | None = None

    @property
    def rows(self) -> int:
        """Return the number of logits."""
        return len(self.weight) if self.vocab_size is None else self.vocab_size

    def cast(self, dtype: torch.dtype) -> "Readout":
        """Return the rows that are used, in the type of the product."""
        bias = None if self.bias is None else self.bias[: self.rows].to(dtype)
        return Readout(self.weight[: self.rows].to(dtype), bias, self.after)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B rows"]:
        """Return the logits, in at least float32. W and h have one type."""
        with no_autocast(hidden):
            return self.after(F.linear(hidden, self.weight, self.bias))


def product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the type in which the model multiplies its hidden states with the weight of its head: autocast's, where it is on."""
    kind = hidden.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


@contextmanager
def replaced_head(lm: PreTrainedModel, answer: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Let ``answer(h)`` stand for the head's output inside the block. Yields the list to which every input h of the head is appended."""
    head: nn.Module = lm.get_output_embeddings()
    seen: list[Tensor] = []

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return answer(hidden)

    head.forward = forward  # hooks of FSDP and of accelerate still run around it
    try:
        yield seen
    finally:
        del head.forward


def first_column(hidden: Tensor) -> Tensor:
    """Return [B, T, 1]: logits that cost nothing."""
    return hidden[..., :1]


@torch.no_grad()
def find_after(lm: PreTrainedModel) -> After:
    """Return what the model does to the output of its head, measured on a few tokens.

    The numbers are sent in float64, whatever the model computes in: bfloat16 would tell a scale of 1/6 to three digits.

    Raises:
        ModelError: the head is not one linear layer that is whole and its own, or the model does something else to its output.
    """
    what = f"The head of {type(lm).__name__}"
    head = _plain_head(lm, what)
    wide = torch.float32 if head.weight.device.type == "mps" else torch.float64
    sent = torch.tensor(GRID, device=head.weight.device, dtype=wide)
    modes = {module: module.training for module in lm.modules()}
    lm.eval()
    try:
        with foreign(what), no_autocast(head.weight):
            with replaced_head(lm, lambda hidden: sent.expand(*hidden.shape[:-1], len(GRID))) as seen:
                found = _last_logits(lm, 1)
            if len(seen) != 1 or found.shape[-1] != len(GRID):
                raise ModelError(f"{what} is not what gives the logits: {OTHERWISE}")
            after = _fit(sent, found, what)
            _check_whole(lm, after, what)
    finally:
        for module, training in modes.items():
            module.training = training
    return after


def _plain_head(lm: PreTrainedModel, what: str) -> nn.Linear:
    head = lm.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(f"{what} is a {type(head).__name__}, not a linear layer: {OTHERWISE}")
    if "forward" in vars(head) or head.weight.numel() == 0 or head.weight.is_meta:
        raise ModelError(f"{what} is moved or sharded by another library, which shows its weight to the layer alone: {OTHERWISE}")
    return head


def _last_logits(lm: PreTrainedModel, tokens: int) -> Tensor:
    """Return the logits [rows] at the last of a few tokens."""
    ids = torch.arange(tokens, device=lm.device).unsqueeze(0)
    return lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits[0, -1]


def _check_whole(lm: PreTrainedModel, after: After, what: str) -> None:
    """Check on two tokens that the hidden states times the weight, and what follows, are the model's logits."""
    head = lm.get_output_embeddings()
    with replaced_head(lm, first_column) as seen:
        _last_logits(lm, 2)
    mine = Readout(head.weight, head.bias, after).logits(seen[0][0, -1])
    size, limit = rounding(mine, at_least_float32(_last_logits(lm, 2)), head.weight.dtype)
    if not size <= limit:
        raise ModelError(f"{what} times the hidden states is not the model's logits (off by {size:.2g} of their spread): {OTHERWISE}")


def _fit(x: Tensor, y: Tensor, what: str) -> After:
    """Return f with y = f(x)."""
    tolerance, digits = PRECISION.get(y.dtype, (0.0, 1))
    x, y = x.double(), y.double()
    small = x.abs() == x[x != 0].abs().min()
    scale, most = _rounded(float((y[small] / x[small]).mean()), digits), _rounded(float(y.abs().max()), digits)
    for cap in (None, most):
        want = scale * x if cap is None else cap * torch.tanh(scale * x / cap)
        if torch.allclose(y, want, rtol=tolerance, atol=tolerance * 1e-3):
            return After(scale, cap)
    raise ModelError(f"{what} is followed by a function that is neither a scale nor a soft cap: {OTHERWISE}")


def _rounded(x: float, digits: int) -> float:
    """Return a number to some significant digits: those that a configuration would hold, not the rounding errors behind them."""
    return float(f"{x:.{digits - 1}e}")
