"""Cut a batch into blocks: the steps that a head computes at once, so that no more than a block of logits is in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# Bytes of a block's float32 logits. A block of this size is large enough for matrix products to be fast.
BLOCK_BYTES = {"cpu": 2**27, "cuda": 2**28}
# A response alone may need this many. Above it, its logits are computed twice, a block of tokens at a time.
LARGEST_BLOCK_BYTES = {"cpu": 2**30, "cuda": 2**31}
# Called with a block, the student's fields of its steps [b, t, …], and those that diagnostics read, which are exact and without gradient.
# Returns the block's part of the loss, and metrics [b, t].
LossOfBlock = Callable[["Block", dict[str, Tensor], dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Block:
    """Name steps of a batch by their rows and columns, [b, t]: some whole responses, or some steps each as a response of one step.

    ``rows`` None is the whole batch. ``width`` is the number of candidates that the widest state of the block has; None: all slots.
    """

    rows: Int[Tensor, "b t"] | None = None
    columns: Int[Tensor, "b t"] | None = None
    width: int | None = None

    def take(self, x: Tensor) -> Tensor:
        """Return the entries of these steps out of [B], [B, T] or [B, T, K]. Slots that no state of the block fills are left out."""
        if self.rows is None:
            return x
        if x.dim() == 1:
            return x[self.rows[:, 0]]
        return x[self.rows, self.columns] if x.dim() == 2 else x[..., : self.width][self.rows, self.columns]

    def tokens(self, x: Tensor) -> Tensor:
        """Return the entries of these steps out of [B, T, D], whole."""
        return x if self.rows is None else x[self.rows, self.columns]

    def put(self, x: Tensor, whole: Tensor) -> None:
        """Write entries of these steps into [B, T] or [B, T, K]."""
        if self.rows is None:
            whole.copy_(x)
        elif x.dim() == 2:
            whole[self.rows, self.columns] = x
        else:
            whole[..., : self.width][self.rows, self.columns] = x


def block_tokens(rows: int, device: torch.device, largest: bool = False) -> int:
    """Return how many tokens a block has whose logits have ``rows`` rows."""
    budget = LARGEST_BLOCK_BYTES if largest else BLOCK_BYTES
    return max(budget["cpu" if device.type == "cpu" else "cuda"] // (4 * max(rows, 1)), 1)


def blocks_of_steps(valid: Bool[Tensor, "B T"], counts: Int[Tensor, "B T"] | None, tokens: int) -> Iterator[Block]:
    """Return blocks of at most ``tokens`` valid steps, each as a response of one step. Steps with about as many candidates come together."""
    rows, columns = valid.nonzero(as_tuple=True)
    if counts is not None:
        order = counts[rows, columns].argsort(stable=True)
        rows, columns = rows[order], columns[order]
    for row, column in zip(rows.split(tokens), columns.split(tokens), strict=True):
        if len(row) == 0:  # no step of the batch is valid
            return
        width = None if counts is None else max(int(counts[row, column].max()), 1)
        yield Block(row.unsqueeze(-1), column.unsqueeze(-1), width)


def blocks_of_responses(valid: Bool[Tensor, "B T"], counts: Int[Tensor, "B T"] | None, tokens: int) -> Iterator[Block]:
    """Return blocks of whole responses, with at most ``tokens`` slots or one response each, and responses of about one length together."""
    lengths = _lengths(valid)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    group: list[int] = []
    for row in [*order, None]:
        if group and (row is None or (len(group) + 1) * max(lengths[row], 1) > tokens):
            yield _responses(group, lengths, counts, valid.device)
            group = []
        if row is not None:
            group.append(row)


def longest_response(valid: Bool[Tensor, "B T"]) -> int:
    """Return the number of steps up to the last valid one of the longest response."""
    return max(_lengths(valid))


def _lengths(valid: Tensor) -> list[int]:
    places = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    return (valid * places).amax(-1).tolist()


def _responses(group: list[int], lengths: list[int], counts: Tensor | None, device: torch.device) -> Block:
    steps = max(max(lengths[row] for row in group), 1)
    rows = torch.tensor(group, device=device).unsqueeze(-1).expand(-1, steps)
    columns = torch.arange(steps, device=device).expand(len(group), -1)
    return Block(rows, columns, None if counts is None else max(int(counts[rows, columns].max()), 1))


def spread(x: Tensor, inside: Bool[Tensor, "b t"]) -> Tensor:
    """Return [b, t, …] of entries [n, …] of the steps that exist, with 0 at the others."""
    if inside.all():
        return x.view(*inside.shape, *x.shape[1:])
    out = x.new_zeros(*inside.shape, *x.shape[1:])
    out[inside] = x
    return out
