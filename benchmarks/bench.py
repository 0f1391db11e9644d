"""A bench on several cores: every seed is a process of `benchmarks/objectives.py` with a few torch threads.

`python benchmarks/bench.py benchmarks/fast --seeds 0-9 --workers 2 --rows FILE [--methods NAME.yaml] [--only NAME,…] [--split test]
[KEY=VALUE]...` takes a folder with `recipe.yaml`, `methods.yaml` and `methods.json` (each method's learning rate, if there), trains and
evaluates every method from one SFT student and one cache, and writes one row a method and seed with every prompt's scores, so that a
bootstrap can pair prompts. What is there is kept: a killed bench goes on at the student that it was at, and a student whose row stands in
the rows' file is not trained again, be it from another machine (`sft_fingerprint` says from which start).
The seeds are of the order of the data (and of student roll-outs): start, cache and the noise of the answers are the same for all.
A folder may bring its roll-outs along, as `rollout/KEY`: a recipe that would make the same takes them from there.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import objectives
from tdistill.experiment.pipeline import Run

from tdistill.experiment.evaluation import SCORES, EvaluatedSystem, read_scores
from tdistill.experiment.models import load_teacher
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.students import start_directory
from tdistill.experiment.systems import protocol
from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.load import load_model
from tdistill.objectives import bind
from tdistill.recipe.schema import BaselineConfig, Recipe, TrainConfig
from tdistill.recipe.text import parse_yaml
from tdistill.runtime.errors import ConfigError, OutputError
from tdistill.runtime.files import read_jsonl, write_json, write_jsonl
from tdistill.runtime.progress import bar, say

POLL_SECONDS = 1.0
DIGITS = 4  # of a prompt's score in a row
SIGNALLED = 128  # what a shell adds to the number of the signal that ended a command
ROLLOUT, STARTS = "rollout", "sft_fingerprint"
# Of a recipe, where things lie and what they are called.
PLACES = {
    "title": True,
    "output_dir": True,
    "data": {"train", "valid", "test"},
    "teacher": {"teacher_model_name_or_path"},
    "student": {"student_model_name_or_path"},
}

Scores = dict[str, dict[str, float]]  # metric → prompt → value


class Bench:
    """What is asked for, and where it lies; ``rows`` is a file of ours whose students need not be trained again."""

    def __init__(self, options: argparse.Namespace, rows: Path | None = None):
        self.options = options
        self.run = Run(open_recipe(options.bench / "recipe.yaml", options.override))
        self.listed = options.bench / options.methods
        read = TrainConfig(objective={"name": "nll"}, baselines=parse_yaml(self.listed.read_bytes(), str(self.listed))).baselines
        own = self.listed.with_suffix(".json")
        self.rates = options.rates or (str(own) if own.exists() else None)
        methods = objectives.at_rates(read, self.rates)
        unknown = options.only - set(read)
        if unknown:
            raise ConfigError(f"{self.listed} lists no {', '.join(sorted(unknown))}. It has {', '.join(read)}.")
        self.methods = {n: m for n, m in methods.items() if not options.only or n.partition("@")[0] in options.only}
        self.root = self.run.root / "objectives" / objectives.run_key(self.run)
        self.evaluated = self.root / "evaluated" / objectives.evaluation_key(self.run, options.split)
        self.rows = rows
        self.kept = kept_rows(self)

    def units(self) -> list[tuple[str, int]]:
        """Every method with every seed."""
        return [(name, seed) for seed in self.options.seeds for name in self.methods]

    def is_done(self, name: str, seed: int) -> bool:
        """Trained and evaluated on the split, or diverged, here or wherever the rows' file comes from."""
        return (name, seed) in self.kept or self.is_here(name, seed)

    def is_here(self, name: str, seed: int) -> bool:
        """Trained and evaluated on the split, or diverged, in this output directory."""
        directory = self.root / f"{name}-{seed}"
        evaluated = self.evaluated / SCORES / f"{directory.name}.json"
        return (directory / objectives.DIVERGED).exists() or ((directory / objectives.TRAINED).exists() and evaluated.exists())

    def arguments(self, method: BaselineConfig) -> dict[str, Any]:
        """What ``TrainingArguments`` gets: the recipe's, then the method's own."""
        return self.run.recipe.train.arguments | method.arguments


def main() -> None:
    options = _options()
    asked = Bench(options, options.rows)
    check_settings(asked)
    take_rollouts(asked)
    signal.signal(signal.SIGTERM, _stop)  # by default it would leave the workers running
    try:
        failed = work(asked)
    finally:
        rows = all_rows(asked)
        if asked.rows:
            write_jsonl(asked.rows, rows)
            say(f"{len(rows)} rows → {asked.rows}")
            starts = {r[STARTS] for r in rows}
            if len(starts) > 1:
                say(f"Students of {len(starts)} starts ({', '.join(sorted(starts))}): another machine's SFT ends in other bits.")
    lines = list(objectives.averages(scores_by_method(r for r in rows if r["method"] in asked.methods)))
    if lines:
        print(objectives.table(lines))
    if asked.options.choose:
        write_json(asked.options.choose, objectives.chosen_rates(lines))
    if failed:
        raise OutputError(f"Seeds {failed} stopped early: their logs lie beside {log_path(asked, failed[0])}. Run again to go on.")


def kept_rows(asked: Bench) -> dict[tuple[str, int], dict[str, Any]]:
    """What the rows' file holds, by method and seed.

    Raises:
        ConfigError: its rows are of other settings.
    """
    path = asked.rows
    if path is None or not path.exists():
        return {}
    rows = read_jsonl(path)
    wanted = asked.run.recipe.model_dump(exclude=PLACES)
    for row in rows:
        if row["split"] != asked.options.split or Recipe.model_validate(row["recipe"]).model_dump(exclude=PLACES) != wanted:
            raise ConfigError(f"{path} holds rows of the {row['split']} prompts and of a recipe with other settings: give --rows another file.")
    return {(row["method"], row["seed"]): row for row in rows}


def take_rollouts(asked: Bench) -> None:
    """Copy the folder's roll-outs to where the run looks for them."""
    source, target = asked.options.bench / ROLLOUT / asked.run.key(ROLLOUT), asked.run.directory(ROLLOUT)
    if source.is_dir() and not target.exists():
        asked.run.prepare()
        shutil.copytree(source, target)
        say(f"roll-outs taken from {source}")


def _stop(number: int, _: object) -> None:
    sys.exit(SIGNALLED + number)


def check_settings(asked: Bench) -> None:
    """A student is found by name and seed: one of the same name, trained by other settings, must not pass for it.

    Raises:
        ConfigError: there is one.
    """
    for row in all_rows(asked):
        method = asked.methods.get(row["method"])
        if method is None:
            continue
        train = asked.run.recipe.train
        own, value = method.on_policy or train.on_policy, method.value or train.value
        wanted = (bind(method.objective).describe(), asked.arguments(method), own and own.model_dump(), value.model_dump())
        if (row["objective"], row["arguments"], row["on_policy"], row["value"]) != wanted:
            where = asked.root if asked.is_here(row["method"], row["seed"]) else asked.rows
            raise ConfigError(
                f"{row['method']}-{row['seed']} of {where} was trained by other settings ({row['objective']}): remove it and its scores, or "
                "rename the method."
            )


def work(asked: Bench) -> list[int]:
    """Run a process a seed, ``--workers`` at once; returns the seeds whose process failed.

    The first starts alone until roll-outs and SFT student are there: two would write the same files.
    """
    todo = [s for s in asked.options.seeds if not all(asked.is_done(n, s) for n in asked.methods)]
    running: dict[int, subprocess.Popen[bytes]] = {}
    failed: list[int] = []
    seen = _count_done(asked)
    with bar("method × seed", len(asked.units()), "students", seen) as progress:
        try:
            while todo or running:
                room = asked.options.workers if asked.run.is_complete("sft") else 1
                while todo and len(running) < room:
                    seed = todo.pop(0)
                    running[seed] = start(asked, seed)
                time.sleep(POLL_SECONDS)
                for seed in [s for s, process in running.items() if process.poll() is not None]:
                    failed += [seed] if running.pop(seed).returncode else []
                now = _count_done(asked)
                progress.advance(now - seen)
                seen = now
        finally:
            for process in running.values():
                process.terminate()
    return failed


def _count_done(asked: Bench) -> int:
    return sum(asked.is_done(*unit) for unit in asked.units())


def log_path(asked: Bench, seed: int) -> Path:
    """What the process of a seed says."""
    return asked.root / f"seed-{seed}.log"


def start(asked: Bench, seed: int) -> "subprocess.Popen[bytes]":
    """`objectives.py` for one seed, its words in a file: bars of several processes would write over each other."""
    o = asked.options
    command = [sys.executable, objectives.__file__, o.bench / "recipe.yaml", *o.override, "--methods", asked.listed]
    command += ["--split", o.split, "--students-only"]
    todo = {name.partition("@")[0] for name in asked.methods if not asked.is_done(name, seed)}
    command += ["--seeds", seed, "--only", ",".join(sorted(todo)), *(["--rates", asked.rates] if asked.rates else [])]
    asked.root.mkdir(parents=True, exist_ok=True)
    # The torch threads of small matmuls wait more than they work: workers, not threads, fill the cores.
    threads = {k: str(o.threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | {"TOKENIZERS_PARALLELISM": "false"}
    with log_path(asked, seed).open("wb") as log:
        return subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, env={**os.environ, **threads})


def all_rows(asked: Bench) -> list[dict[str, Any]]:
    """What was made here, over what the rows' file held; sorted by method and seed."""
    found = asked.kept | {(r["method"], r["seed"]): r for r in unit_rows(asked)}
    return [found[unit] for unit in sorted(found)]


def scores_by_method(rows: Iterable[dict[str, Any]]) -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """Method → seed → metric → prompt → value, of those that did not diverge."""
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for row in rows:
        if not row.get("diverged"):
            found.setdefault(row["method"], {})[row["seed"]] = row["scores"]
    return found


def unit_rows(asked: Bench) -> Iterator[dict[str, Any]]:
    """One row a method and seed that is there: objectives.py's, with every prompt's scores and what it started from."""
    done = {f"{name}-{seed}": (name, seed) for name, seed in asked.units() if asked.is_here(name, seed)}
    if not done:
        return
    shared = protocol(asked.run, asked.options.split)
    common = {
        "recipe": asked.run.recipe.model_dump(),
        "split": asked.options.split,
        "protocol": shared.describe(),
        STARTS: weights_fingerprint(find_model(str(start_directory(asked.run)))),
    }
    for row in objectives.rows(asked.root, asked.evaluated, asked.methods, shared):
        if row.get("system") in done:
            scores = {} if row.get("diverged") else read_scores(asked.evaluated, row["system"])["scores"]
            yield row | common | {"scores": rounded(scores)}


def systems(asked: Bench) -> Iterator[tuple[EvaluatedSystem, dict[str, Any]]]:
    """The teacher, the SFT student, and every method and seed that is trained."""
    dtype = asked.run.recipe.evaluation.dtype
    load, start = partial(load_model, dtype=dtype), find_model(str(start_directory(asked.run)))
    about = {STARTS: weights_fingerprint(start)}
    yield EvaluatedSystem("teacher", "", partial(load_teacher, asked.run, dtype)), {}
    yield EvaluatedSystem("sft", "", partial(load, start)), about
    for name, seed in asked.units():
        directory = asked.root / f"{name}-{seed}"
        if (directory / objectives.TRAINED).exists():
            yield EvaluatedSystem(directory.name, "", partial(load, find_model(str(directory)))), about | {"method": name, "seed": seed}


def check_rows(path: Path, rows: Iterable[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if a file holds rows that were measured by other settings."""
    if any(row[key] != value for row in rows for key, value in settings.items()):
        raise ConfigError(f"{path} holds rows of other settings than {settings}: give --rows another file.")


def rounded(scores: Scores) -> Scores:
    """A row's digits."""
    return {metric: {prompt: float(f"{x:.{DIGITS}g}") for prompt, x in values.items()} for metric, values in scores.items()}


def _seeds(text: str) -> list[int]:
    """ "0-2,7" → 0, 1, 2, 7."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def parser(description: str | None) -> argparse.ArgumentParser:
    """What says which students are meant."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("bench", type=Path, help="folder with recipe.yaml, methods.yaml, methods.json")
    made.add_argument("override", nargs="*", help="KEY.SUB=VALUE of the recipe")
    made.add_argument("--methods", default="methods.yaml", help="file of the folder that lists them, by default methods.yaml")
    made.add_argument("--only", type=lambda s: {n for n in s.split(",") if n}, default=set(), help="comma-separated names")
    made.add_argument("--seeds", type=_seeds, default=_seeds("0-9"), help="such as 0-9 or 3,5")
    made.add_argument("--split", choices=("valid", "test"), default="valid")
    made.add_argument("--rates", help="as for objectives.py; by default the file of the methods' name in .json, if there")
    made.add_argument("--rows", type=Path, help="write the rows here")
    return made


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--workers", type=int, default=2, help="processes at once")
    made.add_argument("--threads", type=int, default=1, help="torch threads of each")
    made.add_argument("--choose", type=Path, help="as for objectives.py")
    return made.parse_intermixed_args()


if __name__ == "__main__":
    main()
