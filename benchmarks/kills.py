"""Kill runs at random moments, run them again, and compare with a run that nobody disturbed.

`python benchmarks/kills.py [--kills 120] [--seed 0] [--output runs/kills]` makes a tiny random teacher and a recipe with SFT, own text, a
corpus, a value head, a target network and a baseline, for a constant and for the default learning-rate schedule. A process is killed
(SIGKILL) right before its n-th file operation among the artefacts of a kind, or at a random time after the first. Then the same command
runs to its end. Roll-outs, weights, logs, answers and scores must be those of the undisturbed run, bit by bit, and one more run must skip
everything. It prints a table by kind of artefact, writes a JSON row for every kill into kills-SEED.jsonl, and ends with status 1 on any
difference. Run again with the same seed and output, it goes on where it was.
"""

import argparse
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401
from kills_child import Ended, Kill, run_command
from kills_recipe import save_teacher, write_recipe
from kills_results import differences, results
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tdistill.experiment.graph import WAY
from tdistill.runtime.files import read_jsonl, write_jsonl

torch.set_num_threads(1)  # a pool of threads does not survive a fork
# Kind of artefact → share of the kills, in the order of a run. Training has the most to lose.
SHARES = {
    "teacher": 0.03,
    "start": 0.03,
    "rollouts": 0.15,
    "students": 0.44,
    "answers": 0.12,
    "divergences": 0.07,
    "concentration": 0.02,
    "evaluation": 0.04,
    "report": 0.1,
}
KINDS = tuple(SHARES)
SCHEDULES = ("constant", "default")
MOST_KILLS_OF_A_RUN = 5
SHARE_BY_OPERATION = 0.7
EQUAL, DIFFERENT = "equal", "different"


@dataclass(frozen=True)
class Undisturbed:
    """Hold a recipe and what it makes undisturbed."""

    recipe: Path
    results: dict[str, Any]
    ended: Ended


class Campaign:
    """Run commands below a directory, and kill them as a seed says."""

    def __init__(self, output: Path, seed: int, kills: int):
        self.output, self.seed, self.kills = output, seed, kills
        self.rows_file = output / f"kills-{seed}.jsonl"
        self.rows: list[dict[str, Any]] = read_jsonl(self.rows_file) if self.rows_file.exists() else []

    def run(self, progress: Progress) -> None:
        """Kill runs until there are enough kills."""
        task = progress.add_task("kills", total=self.kills, completed=len(self.rows))
        references = {schedule: self._undisturbed(schedule) for schedule in SCHEDULES}
        index = 1 + max((row["run"] for row in self.rows), default=-1)
        while len(self.rows) < self.kills:
            self._one_run(index, references[SCHEDULES[index % len(SCHEDULES)]])
            index += 1
            write_jsonl(self.rows_file, self.rows)
            bad = sum(row["verdict"] != EQUAL for row in self.rows)
            progress.update(task, completed=len(self.rows), description=f"kills, {bad} different")
            progress.refresh()

    def _undisturbed(self, schedule: str) -> Undisturbed:
        place = self.output / f"undisturbed-{schedule}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        recipe = write_recipe(place, self.output / "teacher", schedule)
        ended = self._tdistill(recipe, place / "run", place / "log.txt")
        if ended.status != 0:
            sys.exit(f"The undisturbed run ended with status {ended.status}: see {place / 'log.txt'}.")
        return Undisturbed(recipe, results(place / "run"), ended)

    def _one_run(self, index: int, reference: Undisturbed) -> None:
        rng = random.Random(f"{self.seed}/{index}")
        place = self.output / f"run-{index:04d}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        root, log = place / "run", place / "log.txt"
        kills = []
        done = Counter(row["stage"] for row in self.rows)
        missing = {kind: max(share * self.kills - done[kind], 0.1) for kind, share in SHARES.items()}
        for kill in planned(rng, reference.ended, missing):
            ended = self._tdistill(reference.recipe, root, log, kill)
            kills += [asdict(kill)] if ended.status == -9 else []
            if ended.status not in (0, -9):
                break
        found = self._verdict(root, log, reference)
        verdict = DIFFERENT if found else EQUAL
        common = {"run": index, "recipe": reference.recipe.stem, "verdict": verdict, "differences": found}
        self.rows += [{**common, **kill, "at": time.strftime("%Y-%m-%dT%H:%M:%S")} for kill in kills]
        if not found:
            shutil.rmtree(place)

    def _verdict(self, root: Path, log: Path, reference: Undisturbed) -> list[str]:
        """Run to the end, compare, and run once more, which must do nothing."""
        ended = self._tdistill(reference.recipe, root, log)
        if ended.status != 0:
            return [f"the run after the kill ended with status {ended.status}: {last_line(log)}"]
        found = differences(reference.results, results(root))
        before = stamps(root)
        again = log.with_name("again.txt")
        ended = self._tdistill(reference.recipe, root, again)
        skipped = again.read_text(encoding="utf-8").count("complete, skipped")
        if ended.status != 0 or skipped != len(WAY) or stamps(root) != before:
            found.append(f"one more run ended with status {ended.status} and skipped {skipped} of {len(WAY)} stages")
        return found

    def _tdistill(self, recipe: Path, root: Path, log: Path, kill: Kill | None = None) -> Ended:
        return run_command(["run", str(recipe), f"output_dir={root}"], root, log, kill)


def planned(rng: random.Random, undisturbed: Ended, weights: dict[str, float]) -> list[Kill]:
    """Draw the kills of one run, in the order in which it makes its artefacts.

    Args:
        rng: random numbers.
        undisturbed: how an undisturbed run ended.
        weights: kind of artefact → how much a kill in it is wanted.
    """
    stages = rng.choices(list(weights), list(weights.values()), k=rng.randint(1, MOST_KILLS_OF_A_RUN))
    kills = []
    for stage in sorted(stages, key=KINDS.index):
        if rng.random() < SHARE_BY_OPERATION:
            kills.append(Kill(stage, operation=rng.randint(1, undisturbed.operations[stage])))
        else:
            kills.append(Kill(stage, seconds=rng.uniform(0.0, undisturbed.durations[stage])))
    return kills


def stamps(root: Path) -> dict[str, int]:
    """Return file → time of its last change, of all that the run made."""
    return {str(p): p.stat().st_mtime_ns for kind in KINDS for p in (root / kind).rglob("*") if p.is_file()}


def last_line(log: Path) -> str:
    """Return the end of what a process printed."""
    return log.read_text(encoding="utf-8", errors="replace").strip().rsplit("\n", 1)[-1][:300]


def table(rows: list[dict[str, Any]]) -> str:
    """Return kills by kind of artefact and by how the moment was chosen, with what came of them."""
    lines = [f"{'kind':<14}{'kills':>7}{'before an operation':>22}{'at a time':>12}{'equal':>8}{'different':>11}"]
    for stage in [*KINDS, "all"]:
        own = [row for row in rows if stage in (row["stage"], "all")]
        verdicts = Counter(row["verdict"] for row in own)
        by_operation = sum(row["operation"] is not None for row in own)
        counts = f"{len(own):>7}{by_operation:>22}{len(own) - by_operation:>12}{verdicts[EQUAL]:>8}{verdicts[DIFFERENT]:>11}"
        lines.append(f"{stage:<14}{counts}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/kills"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    output = args.output.resolve()
    if not (output / "teacher" / "config.json").exists():
        save_teacher(output / "teacher")
    campaign = Campaign(output, args.seed, args.kills)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # No thread that refreshes: a fork would inherit its lock.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as progress:
        campaign.run(progress)
    print(table(campaign.rows))
    for row in campaign.rows:
        for line in row["differences"]:
            print(f"run-{row['run']:04d} ({row['recipe']}), killed in {row['stage']}: {line}")
    print(f"rows: {campaign.rows_file}")
    sys.exit(any(row["verdict"] != EQUAL for row in campaign.rows))


if __name__ == "__main__":
    main()
