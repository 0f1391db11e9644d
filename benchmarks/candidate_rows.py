"""Measure ways to compute the logits of candidates alone, forward and backward: gathered pairs, and matrix products over unions.

`python benchmarks/candidate_rows.py [--rows FILE] [--tokens N …] [--widths H …]` takes the states of benchmarks/head_inputs.py. A way
returns q = ⟨h_t, W_a⟩ of every pair of a state t and its candidate a, and for a gradient g of q those of h, and adds that of W to W's. The ways
take turns, on one thread; what is reported is the median time of the CPU. All are checked against the first. Rows that stand in the
file are not measured again.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from head_inputs import DTYPES, LENGTH, Size, batch_of
from told import script
from torch import Tensor
from torch.nn.functional import embedding_bag

from tdistill.runtime.files import read_jsonl, write_jsonl

CHUNK_BYTES = 2**20  # of gathered rows: they stay in a core's cache
TOKENS, WIDTHS, PS = (64, 256, 1024, 2048), (64, 512, 1024), (0.95, 0.8, 0.5)
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float64": 1e-10}


@dataclass(frozen=True)
class Pairs:
    """Hold the pairs of states and candidates, state by state, with a gradient of each pair's logit."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    token: Tensor  # [P] the state of each pair
    ids: Tensor  # [P] its candidate
    starts: Tensor  # [N + 1] where the pairs of a state begin
    gradient: Tensor  # [P]
    of_weight: Tensor  # [V, H] the gradient of W is added here

    @classmethod
    def draw(cls, size: Size) -> "Pairs":
        """Return the pairs of a batch, with random states, weights and gradients."""
        torch.manual_seed(0)
        batch, dtype = batch_of(size), DTYPES[size.dtype]
        legal = batch["legal"].flatten(0, 1)
        counts = legal.sum(-1)
        weight = (torch.randn(size.vocab, size.width) / size.width**0.5).to(dtype)
        return cls(
            hidden=torch.randn(size.tokens, size.width).to(dtype),
            weight=weight,
            token=torch.repeat_interleave(torch.arange(size.tokens), counts),
            ids=batch["candidate_ids"].flatten(0, 1)[legal],
            starts=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            gradient=torch.randn(int(counts.sum())).to(dtype),
            of_weight=torch.zeros_like(weight),
        )


Way = Callable[[Pairs], tuple[Tensor, Tensor]]  # → q [P], the gradient of h [N, H]


def gathered(x: Pairs) -> tuple[Tensor, Tensor]:
    """Gather both sides of every pair, a chunk at a time, and add the gradients by ``index_add_``."""
    of_hidden, found = torch.zeros_like(x.hidden), []
    for ids, token, gradient in _chunks(x, x.ids, x.token, x.gradient.unsqueeze(-1)):
        rows, states = x.weight.index_select(0, ids), x.hidden.index_select(0, token)
        found.append((rows.float() * states.float()).sum(-1) if rows.dtype == torch.bfloat16 else (rows * states).sum(-1))
        of_hidden.index_add_(0, token, rows * gradient)
        x.of_weight.index_add_(0, ids, states * gradient)
    return torch.cat(found), of_hidden


def bags(x: Pairs) -> tuple[Tensor, Tensor]:
    """Gather both sides for the forward, and take the gradients as weighted sums of rows: ``embedding_bag`` holds no rows."""
    found = []
    for ids, token in _chunks(x, x.ids, x.token):
        rows, states = x.weight.index_select(0, ids), x.hidden.index_select(0, token)
        found.append((rows.float() * states.float()).sum(-1) if rows.dtype == torch.bfloat16 else (rows * states).sum(-1))
    return torch.cat(found), _gradients(x)


def sparse(x: Pairs) -> tuple[Tensor, Tensor]:
    """Compute the forward as a product that is sampled at the pairs (CSR, float32 and float64 alone), the gradients as ``bags``."""
    size = (len(x.hidden), len(x.weight))
    pattern = torch.sparse_csr_tensor(x.starts, x.ids, torch.zeros_like(x.gradient), size, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, x.hidden, x.weight.T, beta=0.0).values(), _gradients(x)


def unions(states: int | None) -> Way:
    """Return a way that multiplies some states at a time (None: all) with the rows of the union of their candidates."""

    def way(x: Pairs) -> tuple[Tensor, Tensor]:
        of_hidden, found = torch.empty_like(x.hidden), []
        step = states or len(x.hidden)
        for first in range(0, len(x.hidden), step):
            own = slice(first, first + step)
            pairs = slice(int(x.starts[first]), int(x.starts[min(first + step, len(x.hidden))]))
            union, place = x.ids[pairs].unique(return_inverse=True)
            rows, token = x.weight.index_select(0, union), x.token[pairs] - first
            logits = x.hidden[own] @ rows.T
            found.append(logits[token, place])
            of_logits = torch.zeros_like(logits)
            of_logits[token, place] = x.gradient[pairs]
            of_hidden[own] = of_logits @ rows
            x.of_weight.index_add_(0, union, of_logits.T @ x.hidden[own])
        return torch.cat(found), of_hidden

    return way


WAYS: dict[str, Way] = {
    "gathered": gathered,
    "bags": bags,
    "sparse": sparse,
    "union of a response": unions(LENGTH),
    "union of the batch": unions(None),
}


def _chunks(x: Pairs, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    step = max(CHUNK_BYTES // (x.weight.shape[-1] * x.weight.itemsize), 1)
    return zip(*(t.split(step) for t in tensors), strict=True)


def _gradients(x: Pairs) -> Tensor:
    """Return the gradient of h, and add that of W to W's."""
    union, place = x.ids.unique(return_inverse=True)
    order = place.argsort(stable=True)
    counts = place.bincount()
    rows = embedding_bag(x.token[order], x.hidden, counts.cumsum(0) - counts, mode="sum", per_sample_weights=x.gradient[order])
    x.of_weight.index_add_(0, union, rows)
    return embedding_bag(x.ids, x.weight, x.starts[:-1], mode="sum", per_sample_weights=x.gradient)


def measure(size: Size, repetitions: int) -> dict[str, Any]:
    """Return a row: the size, its pairs and union, and the seconds of each way. The first round warms up, and is checked.

    Raises:
        AssertionError: a way does not agree with the first.
    """
    x = Pairs.draw(size)
    ways = {name: way for name, way in WAYS.items() if name != "sparse" or size.dtype != "bfloat16"}
    first: list[Tensor] = []
    for name, way in ways.items():
        x.of_weight.zero_()
        found = [t.double() for t in (*way(x), x.of_weight)]
        first = first or found
        for a, b in zip(first, found, strict=True):
            error = float((a - b).norm() / a.norm())
            assert error < TOLERANCE[size.dtype], f"{name} is off by {error:.2g} at {size}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            started = time.process_time()
            way(x)
            seconds[name].append(time.process_time() - started)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    return {**asdict(size), "pairs": len(x.ids), "union": len(x.ids.unique()), "repetitions": repetitions, "seconds": times}


def main() -> None:
    options = _options()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.set_num_threads(1)
    rows = read_jsonl(options.rows) if options.rows and options.rows.exists() else []
    known = {tuple(row[key] for key in asdict(Size())) for row in rows}
    for dtype, tokens, width, p in product(options.dtypes, options.tokens, options.widths, options.p):
        size = Size(tokens, options.vocab, width, dtype, p)
        if tuple(asdict(size).values()) in known:
            continue
        rows.append(measure(size, options.repetitions))
        print({k: v for k, v in rows[-1].items() if k != "seconds"}, flush=True)
        print({name: f"{1e3 * s:.2f} ms" for name, s in rows[-1]["seconds"].items()}, flush=True)
        if options.rows:
            write_jsonl(options.rows, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="keep the rows here")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help=f"N, multiples of {LENGTH}")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="H")
    parser.add_argument("--p", type=float, nargs="+", default=PS)
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=("float32", "bfloat16"))
    parser.add_argument("--vocab", type=int, default=151665, help="V")
    parser.add_argument("--repetitions", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    with script():
        main()
