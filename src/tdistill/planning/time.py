"""Compute the floating-point operations of each stage, and the seconds that they and the movement of memory take."""

from dataclasses import dataclass

from tdistill.planning.machines import Machine
from tdistill.planning.memory import BYTES, FLOAT32, SAMPLING, SCORING, Generation
from tdistill.planning.sizes import ModelSize

BACKWARD, FROZEN_BACKWARD, AGAIN = 2, 1, 1  # forward passes that a backward pass, one of adapters, and recomputed activations cost
ADAM_TRAFFIC = 28  # bytes a parameter that AdamW reads and writes
LAYER_SECONDS = 5e-4  # that a layer takes at least in a forward pass, as when one token is written: Python and the launch of its operations
PASSES = 2  # every copy of the logits is written and read


@dataclass(frozen=True)
class Work:
    """Hold what a stage computes: response tokens, floating-point operations, and seconds."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds)

    def __mul__(self, times: float) -> "Work":
        return Work(self.tokens * times, self.flops * times, self.seconds * times)


def forward_flops(size: ModelSize, read: float, scored: float, length: float) -> float:
    """Return 2·(P_body + 2·layers·D·L/2)·read + 2·V·D·scored: the products of weights, of attention, and of the head.

    Args:
        size: the model.
        read: tokens that go through the body.
        scored: tokens whose logits are computed.
        length: mean length of the texts.
    """
    head = size.rows * size.width
    return 2 * (size.products - head + size.layers * size.width * length) * read + 2 * head * scored


def scoring(size: ModelSize, dtype: str, texts: float, prompt: float, response: float, machine: Machine) -> Work:
    """Return the work of one forward pass over texts, with the log-probs of all responses."""
    flops = forward_flops(size, texts * (prompt + response), texts * response, prompt + response)
    moved = PASSES * SCORING * FLOAT32 * texts * response * size.rows
    return Work(texts * response, flops, flops / machine.rate(dtype) + moved / machine.bandwidth)


def writing(one: Generation, texts: float, machine: Machine) -> Work:
    """Return the work of writing texts token by token. A step reads all weights and the cache once: on most devices that is its time."""
    length = one.prompt + one.response
    flops = forward_flops(one.size, texts * length, texts * one.response, length)
    batches = texts / one.batch
    weights = BYTES[one.dtype] * one.size.products
    cache = BYTES[one.dtype] * one.numbers * one.batch * (one.prompt + one.response / 2)
    logits = PASSES * SAMPLING * FLOAT32 * one.batch * one.rows
    read = batches * one.response * (weights + cache + logits) / machine.bandwidth
    launched = batches * one.response * one.size.layers * LAYER_SECONDS
    return Work(texts * one.response, flops, max(flops / machine.rate(one.dtype), read) + launched)


@dataclass(frozen=True)
class Step:
    """Hold what one optimizer step reads."""

    size: ModelSize
    dtype: str  # of the matrix products
    texts: float
    prompt: float  # tokens
    response: float
    units: float  # copies of the logits in float32
    checkpointing: bool
    micro_batches: int = 1


def training(step: Step, machine: Machine) -> Work:
    """Return the work of one optimizer step: three forward passes' operations, the logits' traffic, and AdamW's."""
    size, scored = step.size, step.texts * step.response
    forward = forward_flops(size, step.texts * (step.prompt + step.response), scored, step.prompt + step.response)
    backward = BACKWARD if size.trainable == size.parameters else FROZEN_BACKWARD
    flops = forward * (1 + backward + (AGAIN if step.checkpointing else 0))
    moved = PASSES * step.units * FLOAT32 * scored * size.rows + ADAM_TRAFFIC * size.trainable
    launched = 3 * step.micro_batches * size.layers * LAYER_SECONDS
    return Work(scored, flops, max(flops / machine.rate(step.dtype), launched) + moved / machine.bandwidth)
