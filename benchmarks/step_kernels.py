"""Time attention implementations and compiled layers against the model as it is, for `step_parts.py`."""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from step_whole import BATCH, SEED, student
from torch import Tensor

from tdistill.data.collate import DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.training.batch import build_steps, student_inputs
from tdistill.training.compiled import compile_layers
from tdistill.training.schedule import ByLength

LENGTHS, PAIRS = ((4, 128), (1, 512)), 4
KL = bind("reverse_kl")


def _timed(make: Callable[[], Tensor], parameters: list[Tensor]) -> float:
    """Return the time of a forward and a backward of this process."""
    started = time.process_time()
    make().backward()
    taken = time.process_time() - started
    for parameter in parameters:
        parameter.grad = None
    return taken


def attention_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each size of a batch: forward and backward of the body by ``eager`` ÷ by ``sdpa``, one after the other."""
    models = {name: student(directory, None, name) for name in ("sdpa", "eager")}
    for rows, length in LENGTHS:
        ids = torch.randint(0, 1000, (rows, length), generator=torch.Generator().manual_seed(SEED))
        mask = torch.ones_like(ids)
        mask[0, : length // 4] = 0
        ratios, seconds = [], []
        for pair in range(PAIRS + 1):
            taken = {}
            for name, model in models.items():

                def make(model: Any = model, ids: Tensor = ids, mask: Tensor = mask) -> Tensor:
                    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum()

                taken[name] = _timed(make, list(model.parameters()))
            if pair:  # the first warms up
                ratios.append(taken["eager"] / taken["sdpa"])
                seconds.append(taken["sdpa"])
        yield {"kind": "attention", "rows": rows, "length": length, "ratio": quantiles(ratios, n=4), "seconds": quantiles(seconds, n=4)}


def compile_rows(cache: Path, directory: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row: forward and backward with compiled layers ÷ without, on batches of a cache, and the seconds of the first ones."""
    data, collate = RolloutDataset(cache), DistillCollator()
    order = list(ByLength(data.lengths(), BATCH, SEED, lambda: 0))
    plain = StudentModel(student(directory, None))
    models = {"plain": plain, "compiled": copy.deepcopy(plain)}
    compile_layers(models["compiled"], "inductor", None)
    times: dict[str, list[float]] = {name: [] for name in models}
    walls: list[float] = []
    for start in range(0, BATCH * options.only * 3, BATCH * 3):
        batch = collate([data[i] for i in order[start : start + BATCH // 2]])
        for name, model in models.items():

            def make(model: StudentModel = model, batch: dict[str, Tensor] = batch) -> Tensor:
                out = model(**student_inputs(batch), needs=KL.needs, vocab_size=model.config.vocab_size)
                steps = build_steps(batch, out, model.config.vocab_size)
                return torch.where(steps.mask_t, KL(steps).loss_t, 0.0).sum()

            begun = time.perf_counter()
            times[name].append(_timed(make, list(model.parameters())))
            if name == "compiled":
                walls.append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(times["compiled"], times["plain"], strict=True)]
    warm = len(ratios) // 2
    yield {
        "kind": "compile",
        "ratio": quantiles(ratios[warm:], n=4),
        "seconds_plain": quantiles(times["plain"], n=4),
        "walls_of_the_first": walls[:warm],
        "steps": len(ratios) - warm,
    }
