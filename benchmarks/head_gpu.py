"""Measure the student's heads on a GPU, beside Liger's fused linear JSD and other libraries' losses if they are installed.

`python benchmarks/head_gpu.py FILE` writes one JSON object: the device, and the time and memory of each run, forward and backward, at 8,192
tokens, V = 151,936, H = 4,096 in bfloat16. It takes a few minutes. Runs take turns; times are medians. On a machine without a GPU
`--device cpu --tokens 128 --vocab 1000 --width 64` shows that it runs.
"""

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import head_peers
import torch
from head_inputs import DTYPES, Size
from head_runs import ANCHOR, Own
from told import script

from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import write_text

RUNS = [
    ANCHOR,
    ("full", "nll"),
    ("full", "reverse_kl, tail"),
    ("full", "jsd, dense"),
    ("chunked", "nll"),
    ("chunked", "reverse_kl, tail"),
    ("chunked", "jsd, dense"),
    ("sampled", "reverse_kl, tail"),
    ("candidates", "reverse_kl, proj"),
]


def measure(size: Size, device: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each run and each other library's loss. Two rounds warm up: the second measures memory."""
    own = Own(size, device)
    inputs = own.inputs()
    known, missing = head_peers.losses()
    del known[ANCHOR]
    calls = {key: lambda memory, key=key: own.run(key, memory) for key in RUNS}
    calls |= {key: lambda memory, loss=loss: head_peers.run(loss, inputs, memory, device) for key, loss in known.items()}
    rows: dict[Any, dict[str, Any]] = {}
    for key, call in list(calls.items()):
        row = rows[key] = {"head": key[0], "objective": key[1]}
        try:
            call(False)
            row |= call(True)
        except Exception as error:  # out of memory, or whatever another library raises, is a result too
            row["error"] = f"{type(error).__name__}: {error}"[:300]
            del calls[key]
        _forget(own, inputs)
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(call(False)["cpu_seconds"])
            _forget(own, inputs)
    for key, seconds in times.items():
        rows[key] |= {"milliseconds": 1e3 * statistics.median(seconds), "least": 1e3 * min(seconds), "most": 1e3 * max(seconds)}
    return [*rows.values(), *({"head": name, "error": why} for name, why in missing.items())]


def _forget(own: Own, inputs: dict[str, torch.Tensor]) -> None:
    """Drop all gradients, so that no run pays for those of another."""
    own.lm.zero_grad()
    for tensor in inputs.values():
        tensor.grad = None


def main() -> None:
    options = _options()
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this PyTorch sees no GPU. Install one that is built for CUDA, or give --device cpu and a small size.")
    size = Size(options.tokens, options.vocab, options.width, options.dtype)
    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    rows = measure(size, options.device, options.rounds)
    found = {"device": name, "torch": torch.__version__, **asdict(size), "unit_bytes": size.logits, "rows": rows}
    write_text(options.file, json.dumps(found, indent=1) + "\n")
    for row in rows:
        told = row.get("error") or f"{row['milliseconds']:.1f} ms, {row['allocated'] / 2**30:.2f} GiB"
        print(f"{row['head']} {row.get('objective', '')}: {told}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="write the JSON here")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, default=8192, help="N")
    parser.add_argument("--vocab", type=int, default=151936, help="V")
    parser.add_argument("--width", type=int, default=4096, help="H")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    with script():
        main()
