"""Measure the parts of a training step: padding, collation, the loader, the attention, and the whole beside the Trainer's SFT step.

`python benchmarks/step_parts.py padding CACHE [--rows FILE]` counts the padded slots of a cache's batches, for several p, in random order
and grouped by length, and times reading and collation. `lengths PROMPTS` counts padded columns of prompts with answers (two keys of
`data.md`) under SmolLM2's tokenizer. `loader CACHE` times how long a step waits for its batch. `step CACHE STUDENT` times whole steps of
`DistillTrainer` and of transformers' `Trainer` on the same tokens, one after the other on every batch, so that a machine's drift is in
both; `--vocab N` takes the same body with N tokens. `attention STUDENT` and `compile CACHE STUDENT` time these
two settings. Times of steps are those of this process alone. Rows are appended to FILE.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from step_kernels import attention_rows, compile_rows
from step_whole import whole_steps
from told import script
from torch import Tensor
from torch.utils.data import DataLoader

from tdistill.data.collate import RAGGED, DistillCollator, with_padding
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import load_prompts, tokenize_prompts
from tdistill.mdp.candidates import Candidates, Ragged
from tdistill.models.find import find_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.training.schedule import ByLength

SEED, BATCH = 0, 8
ALL_P = (0.95, 0.8, 0.5)
BLOCK = 256  # tokens that a head may compute at once
STEP_SECONDS = 0.03  # of the step that `loader` pretends


def orders(lengths: Sequence[int]) -> dict[str, list[np.ndarray]]:
    """Return the batches of an epoch, by how they are drawn."""
    random = np.random.default_rng(SEED).permutation(len(lengths))
    grouped = np.array(list(ByLength(lengths, BATCH, SEED, lambda: 0)))
    return {name: np.split(o[: len(o) // BATCH * BATCH], len(o) // BATCH) for name, o in (("random", random), ("by length", grouped))}


def columns(prompts: np.ndarray, responses: np.ndarray, batches: list[np.ndarray]) -> dict[str, float]:
    """Return shares of padded slots: of the columns that a model reads, of prompts alone, of responses alone.

    ``contiguous``: of the columns, if a prompt and its response stood together. That is what packing of rows starts from.
    """
    read = sum(len(b) * (prompts[b].max() + responses[b].max() - 1) for b in batches)
    contiguous = sum(len(b) * (prompts[b] + responses[b] - 1).max() for b in batches)
    real = sum((prompts[b] + responses[b] - 1).sum() for b in batches)
    found = {
        "columns": 1 - real / read,
        "prompts": 1 - sum(prompts[b].sum() for b in batches) / sum(len(b) * prompts[b].max() for b in batches),
        "responses": 1 - sum(responses[b].sum() for b in batches) / sum(len(b) * responses[b].max() for b in batches),
        "contiguous": 1 - real / contiguous,
    }
    return {name: float(share) for name, share in found.items()}


def slots(counts: list[np.ndarray]) -> dict[str, int]:
    """Return the candidate slots of a batch: real ones, padded to the widest state of the batch, of each response, and of each block."""
    every = np.sort(np.concatenate(counts))
    blocks = np.split(every, range(BLOCK, len(every), BLOCK))
    return {
        "real": int(every.sum()),
        "batch": len(counts) * max(map(len, counts)) * int(every[-1]),
        "response": sum(len(c) * int(c.max()) for c in counts),
        "block": sum(len(b) * int(b.max()) for b in blocks),
    }


def one_by_one(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch whose candidates are padded response by response, then together: the plain way to do it."""
    rest = DistillCollator()([{k: v for k, v in e.items() if k != "candidates"} for e in examples])
    found = [Candidates.from_ragged(e["candidates"]) for e in examples]
    shape = (len(found), rest["taken_ids"].shape[1], max(c.legal.shape[1] for c in found))
    for key, name, fill in (("candidate_ids", "ids", 0), ("logp", "logp", -np.inf), ("legal", "legal", False)):
        values = [getattr(c, name).numpy() for c in found]
        out = np.full(shape, fill, values[0].dtype)
        for i, value in enumerate(values):
            out[i, : value.shape[0], : value.shape[1]] = value
        rest[key] = torch.from_numpy(out)
    return rest


def padding_rows(cache: Path, only: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each p and each way to draw batches."""
    for p in ALL_P:
        data = RolloutDataset(cache, p)
        sizes = [np.array([len(data[i][key]) for i in range(len(data))]) for key in ("input_ids", "response_ids")]
        for order, batches in orders(data.lengths()).items():
            yield {
                "kind": "padding",
                "cache": {k: data.manifest.settings[k] for k in ("max_candidates", "max_completion_length")} | {"responses": len(data)},
                "p": p,
                "order": order,
                "padded": columns(*sizes, batches),
                **_candidates(data, batches[:only]),
            }


def _candidates(data: RolloutDataset, batches: list[np.ndarray]) -> dict[str, Any]:
    """Return slots, bytes and milliseconds of some batches."""
    total: dict[str, float] = {}
    times: dict[str, list[float]] = {}
    padded, ragged = DistillCollator(), DistillCollator(padded=False)

    def timed(name: str, make: Callable[[], Any]) -> Any:
        started = time.process_time()  # not the wall's: other work on the machine must not count
        made = make()
        times.setdefault(name, []).append(1e3 * (time.process_time() - started))
        return made

    for batch in batches:
        examples = timed("read", lambda batch=batch: [data[int(i)] for i in batch])
        found: list[Ragged] = [e["candidates"] for e in examples]
        small = timed("ragged", lambda examples=examples: ragged(examples))
        timed("padding it", lambda small=small: with_padding(small))
        large = timed("padded", lambda examples=examples: padded(examples))
        timed("one by one", lambda examples=examples: one_by_one(examples))
        counted = slots([r.counts for r in found])
        counted |= {"bytes padded": sum(x.nbytes for x in large.values()), "bytes ragged": sum(x.nbytes for x in small.values())}
        counted |= {"bytes of candidates": sum(small[k].nbytes for k in RAGGED), "batches": 1}
        total = {k: total.get(k, 0) + v for k, v in counted.items()}
    return {"slots": total, "milliseconds": {k: [fmean(v), stdev(v)] for k, v in times.items()}}


def length_rows(source: str, most: int, longest: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to draw batches of prompts and their answers."""
    tokenizer = load_tokenizer(find_model("packaged:smollm2"))
    prompts, _ = tokenize_prompts([p for p in load_prompts(source) if p.references][:most], tokenizer, longest, "skip")
    answers = np.array([min(len(tokenizer(p.prompt.references[0])["input_ids"]) + 1, longest) for p in prompts])
    asked = np.array([len(p.ids) for p in prompts])
    for order, batches in orders((asked + answers).tolist()).items():
        about = {"prompts": len(prompts), "mean_prompt": float(asked.mean()), "mean_answer": float(answers.mean()), "longest": longest}
        yield {"kind": "lengths", "data": Path(source).parent.name, **about, "order": order, "padded": columns(asked, answers, batches)}


def loader_rows(cache: Path, only: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to load: how long a step waits for its batch."""
    data = RolloutDataset(cache)
    for workers in (0, 1):
        for padded in (True, False):
            # As the Trainer makes it.
            given: dict[str, Any] = {"num_workers": workers, "collate_fn": DistillCollator(padded=padded)}
            waits, last = [], None
            for i, batch in enumerate(DataLoader(data, batch_size=BATCH, **given)):
                now = time.perf_counter()
                waits += [] if last is None else [1e3 * (now - last)]
                with_padding(batch)
                time.sleep(STEP_SECONDS)
                if i == only:
                    break
                last = time.perf_counter()
            yield {"kind": "loader", "workers": workers, "padded": padded, "wait": [fmean(waits), stdev(waits)], "batches": len(waits)}


def made_by() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(), "seed": SEED, "batch": BATCH}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("padding", "lengths", "loader", "step", "attention", "compile"))
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--rows", type=Path, help="append the rows here")
    parser.add_argument("--only", type=int, default=24, help="number of batches that are timed")
    parser.add_argument("--vocab", type=int, help="step: tokens of the student")
    parser.add_argument("--bf16", action="store_true", help="step: autocast to bfloat16")
    parser.add_argument("--grouped", action="store_true", help="step: batches of about one length")
    options = parser.parse_args()
    first = options.inputs[0]
    if options.what == "padding":
        rows = padding_rows(Path(first), options.only)
    elif options.what == "lengths":
        rows = length_rows(first, 3000, 512)
    elif options.what == "loader":
        rows = loader_rows(Path(first), options.only)
    elif options.what == "attention":
        rows = attention_rows(Path(first))
    elif options.what == "compile":
        rows = compile_rows(Path(first), Path(options.inputs[1]), options)
    else:
        rows = whole_steps(Path(first), Path(options.inputs[1]), options)
    for row in rows:
        row |= {"made_by": made_by()}
        print(row, flush=True)
        if options.rows:
            write_jsonl(options.rows, [*(read_jsonl(options.rows) if options.rows.exists() else []), row])


if __name__ == "__main__":
    with script():
        main()
