"""Show in under three minutes when looking ahead pays: `make demo-steps`.

Students of World 0 (``ring_world.py``) are trained for texts of 2 to 16 steps, by two losses that copy the teacher and by one that looks
ahead. The output is a table in the terminal and a page with a figure: accuracy against the number of steps.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1]))
from ring_bench import HERE, ROWS, chosen_rates, run_sweep
from ring_pages import NAMES, Rows, accuracy_plot, mean, of_sweep, read
from told import script

from tdistill.pages.document import write_document
from tdistill.pages.parts import Document, Section
from tdistill.pages.tables import Cell, Table, format_estimate, right_aligned
from tdistill.pages.terminal import print_document
from tdistill.runtime.files import read_jsonl
from tdistill.runtime.progress import say

SWEEP, AHEAD = "demo", "actor_critic_own"
TITLE = "When does looking ahead pay?"


def document(rows: Rows, facts: Mapping[str, str]) -> Document:
    """Build the page: the claim, the table and the figure."""
    own = of_sweep(rows, SWEEP)
    methods = list(dict.fromkeys(row["method"] for row in own))
    lengths = sorted({read(row, "setting.ring.steps") for row in own})
    cells = {(name, h): [r for r in own if (r["method"], read(r, "setting.ring.steps")) == (name, h)] for name in methods for h in lengths}
    scores = {cell: mean(found, "greedy") for cell, found in cells.items()}
    lines = [[Cell(NAMES[name]), *(Cell(format_estimate(scores[name, h])) for h in lengths)] for name in methods]
    header = ["method", *(f"H = {h}" for h in lengths)]
    caption = "Greedy accuracy: share of texts whose H steps are all right. Mean of two seeds ± standard error."
    longest = lengths[-1]
    copied = max(scores[name, longest].mean for name in methods if name != AHEAD)
    claim = (
        f"With {longest} steps the student that looks ahead is right in {scores[AHEAD, longest].mean:.0%} of its texts, the better one of "
        f"those that copy in {copied:.0%}. At each step the teacher takes an easy or a hard way; the student can go only the easy one."
    )
    plot = accuracy_plot(own, "steps-demo", methods, "Accuracy against the number of steps H.")
    table = Table(caption, header, lines, right_aligned(len(header)), terminal=True)
    return Document(TITLE, facts, [Section("accuracy", "Accuracy by number of steps", [claim, table, plot])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/steps-demo"))
    output: Path = parser.parse_args().output
    started = time.monotonic()
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    plan = yaml.safe_load((HERE / "ring.yaml").read_text(encoding="utf-8"))
    rows = run_sweep(SWEEP, plan, output / "rows.jsonl", rates=chosen_rates(read_jsonl(ROWS)))
    made = document(rows, {"time": f"{time.monotonic() - started:.0f} s", "seeds": "2", "details": "docs/experiments/steps.md"})
    _, page = write_document(output, "steps", made)
    print_document(Console(), made)
    say(made.sections[0].parts[0])
    say(f"figure: {output / 'figures' / 'steps-demo.svg'}, page: {page}")


if __name__ == "__main__":
    with script():
        main()
