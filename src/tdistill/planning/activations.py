"""Count what a backward pass keeps of a student's body, by running the body on fake tensors: they have shapes and take no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from tdistill.models.layout import positions
from tdistill.models.student import StudentModel

# What fake tensors can't run, such as a router that sends each token to an expert of its own.
NOT_FAKEABLE = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException, UnsupportedOperatorException)
PER_WIDTH = 34  # bytes a layer, token and unit of width in 16 bits: Korthikanti et al. 2022, equation 2, without attention scores


@dataclass(frozen=True)
class Activations:
    """Hold the bytes that a forward pass of the body keeps for the backward pass."""

    kept: int
    layer: int  # of one layer while it is computed: what activation checkpointing computes again
    counted: bool = True  # False: from a formula, since fake tensors could not run this architecture


def activations(lm: Any, batch: int, length: int, *, bfloat16: bool = False, checkpointing: bool = False) -> Activations:
    """Return what a forward pass of ``batch`` texts of ``length`` tokens keeps.

    Args:
        lm: a causal LM on the meta device, with or without adapters. It is changed into fake tensors.
        batch: B.
        length: L.
        bfloat16: under autocast, which also keeps copies of the weights in bfloat16.
        checkpointing: keep the input of every layer alone.
    """
    layers = StudentModel(lm).config.get_text_config().num_hidden_layers
    width = lm.get_output_embeddings().weight.shape[1]
    try:
        whole = _kept(lm, batch, length, bfloat16)
        counted = True
    except NOT_FAKEABLE:
        whole, counted = PER_WIDTH * (1 if bfloat16 else 2) * layers * batch * length * width, False
    layer = whole // layers
    if not checkpointing:
        return Activations(whole, layer, counted)
    inputs = 4 * layers * batch * length * width
    return Activations(inputs + layer, layer, counted)


def _kept(lm: Any, batch: int, length: int, bfloat16: bool) -> int:
    """Return the bytes of the distinct tensors that autograd saves, beside parameters."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _make_fake(lm, mode)
        body = StudentModel(lm).base_model.train()
        own = {p.untyped_storage()._cdata for p in lm.parameters()}
        mask = torch.ones(batch, length, dtype=torch.long)
        given = {"input_ids": torch.zeros_like(mask), "attention_mask": mask, "position_ids": positions(mask), "use_cache": False}
        with _saved() as seen, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            body(**given)
        return sum(x.untyped_storage().nbytes() for key, x in seen.items() if key not in own)


@contextmanager
def _saved() -> Iterator[dict[int, Tensor]]:
    """Collect the tensors that autograd saves, one for each storage. They are held, so that no storage gets the place of another."""
    seen: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        seen.setdefault(x.untyped_storage()._cdata, x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield seen


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Turn the parameters and buffers of a model on the meta device into fake tensors on the CPU. Tied ones stay tied."""
    made: dict[int, Tensor] = {}

    def fake(x: Tensor) -> Tensor:
        if id(x) not in made:
            new = FakeTensor(mode, x.detach(), torch.device("cpu"))
            made[id(x)] = nn.Parameter(new, x.requires_grad) if isinstance(x, nn.Parameter) else new
        return made[id(x)]

    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is not None and not isinstance(tensor, FakeTensor):
                    store[name] = fake(tensor)
