"""Measure the student's heads: time and memory of a forward and backward from hidden states, beside transformers' cross-entropy.

`python benchmarks/head.py [--rows FILE] [--peers PYTHON] [--only GROUP …] [--heads HEAD …]` runs the objectives of each group of ``GROUPS`` by
every head that can serve them, through ``StudentModel``, on the inputs of head_inputs.py. `--peers` names the Python of an environment in which
head_peers.py runs other libraries' losses on the same hidden states and weights. In a round every run has its turn, on one thread, and
its time of the CPU is divided by that of transformers' cross-entropy in the same round and process: the median over rounds is what is
reported. Memory is the most that is added at once, gradients included, in copies of the float32 logits, N·V·4 bytes. Rows that stand in
the file are not measured again.
"""

import argparse
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from head_inputs import Size
from head_runs import ANCHOR, HEADS, OBJECTIVES, Key, Own, Peers, keys
from told import script

from tdistill.runtime.files import read_jsonl, write_jsonl

FEW = ("nll", "reverse_kl, tail", "reverse_kl, proj")
FLAT = ("reverse_kl, tail", "reverse_kl, proj")  # with a partition function, and without
ALIKE = ("nll", "reverse_kl, dense", "jsd, dense", "forward_kl, tail", "jsd, tail")  # what other libraries compute too
SEVERAL = (*FEW, "reverse_kl, dense")


@dataclass(frozen=True)
class Group:
    """Name sizes, the objectives that are measured at each, and whether other libraries are."""

    sizes: Sequence[Size]
    objectives: Sequence[str] = FEW
    peers: bool = False


BASE = Size()
GROUPS = {
    "base": Group([BASE], tuple(OBJECTIVES)),
    "libraries": Group([Size(256, 32768, 512)], ALIKE, peers=True),
    "narrow": Group([replace(BASE, width=64)], SEVERAL),
    "vocab": Group([replace(BASE, vocab=v) for v in (8192, 32768, 65536, 131072, 262144)], FLAT),
    "bfloat16": Group([replace(BASE, dtype="bfloat16")], SEVERAL),
    "wide": Group([replace(BASE, width=1024)]),
    "tokens": Group([replace(BASE, tokens=2048)]),
    "tiny": Group([Size(128, 1000, 16)], tuple(OBJECTIVES), peers=True),
}
IDENTITY = (*asdict(BASE), "by", "head", "objective")  # columns that tell rows apart
OURS, THEIRS = "tdistill", "peer"  # who runs a loss: this process, or that of --peers


def measure(size: Size, by: str, runner: Own | Peers, wanted: Sequence[Key], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each run. Before the rounds that are timed, one measures memory and warms up. The cross-entropy is in every round."""
    order = list(dict.fromkeys([ANCHOR, *wanted]))
    memory = {key: runner.run(key, True) for key in order}
    times = [{key: runner.run(key, False) for key in order if "error" not in memory[key]} for _ in range(rounds)]
    rows = []
    for key in wanted:
        row = dict(zip(IDENTITY, (*asdict(size).values(), by, *key), strict=True)) | {"loss": memory[key].get("loss")}
        if "error" in memory[key]:
            rows.append(row | {"error": memory[key]["error"]})
        else:
            sizes = {name: memory[key][name] / size.logits for name in ("allocated", "resident")}
            rows.append(row | sizes | _times([one[key] for one in times], [one[ANCHOR] for one in times]))
        print(_told(rows[-1]), flush=True)
    return rows


def _times(own: Sequence[dict[str, float]], anchor: Sequence[dict[str, float]]) -> dict[str, Any]:
    ratios = [one["cpu_seconds"] / other["cpu_seconds"] for one, other in zip(own, anchor, strict=True)]
    seconds = {name: statistics.median(one[name] for one in own) for name in ("seconds", "cpu_seconds")}
    return {"ratio": statistics.median(ratios), "ratios": ratios, **seconds}


def _told(row: dict[str, Any]) -> str:
    name = f"N {row['tokens']:,} V {row['vocab']:,} H {row['width']} {row['dtype']}: {row['head']}, {row['objective']}"
    if "error" in row:
        return f"{name}: {row['error']}"
    return f"{name}: {row['ratio']:.3f}x, {row['allocated']:.2f} ({row['resident']:.2f}) copies"


class Rows:
    """Keep the rows of a file, and measure those that are missing.

    Args:
        path: the file; None: rows are printed alone.
        rounds: how often each run is timed.
    """

    def __init__(self, path: Path | None, rounds: int):
        self.path, self.rounds = path, rounds
        self.rows = read_jsonl(path) if path is not None and path.exists() else []

    def missing(self, size: Size, by: str, asked: Sequence[Key]) -> list[Key]:
        """Return the runs that have no row."""
        known = {tuple(row[key] for key in IDENTITY) for row in self.rows}
        return [key for key in asked if (*asdict(size).values(), by, *key) not in known]

    def add(self, size: Size, by: str, runner: Own | Peers, wanted: Sequence[Key]) -> None:
        """Measure runs and keep their rows."""
        versions = runner.facts["versions"] if isinstance(runner, Peers) else {"torch": torch.__version__}
        self.rows += [row | {"rounds": self.rounds, "versions": versions} for row in measure(size, by, runner, wanted, self.rounds)]
        if self.path is not None:
            write_jsonl(self.path, self.rows)


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    rows = Rows(options.rows, options.rounds)
    with ExitStack() as stack:
        peers = stack.enter_context(Peers(options.peers)) if options.peers else None
        for name in options.only:
            group = GROUPS[name]
            for size in group.sizes:
                wanted = rows.missing(size, OURS, (ANCHOR, *keys(group.objectives, options.heads)))
                if wanted:
                    rows.add(size, OURS, Own(size), wanted)
                if peers is not None and group.peers and (left := rows.missing(size, THEIRS, peers.keys)):
                    peers.load(Own(size).inputs())
                    rows.add(size, THEIRS, peers, left)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="keep the rows here")
    parser.add_argument("--peers", help="Python of the environment of head_peers.py")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=[name for name in GROUPS if name != "tiny"])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are timed")
    return parser.parse_args()


if __name__ == "__main__":
    with script():
        main()
