"""Objectives against each other: same start, same cache, same steps, several training seeds.

`python benchmarks/objectives.py RECIPE --split valid --seeds 17 [--only NAME,…]` trains what `benchmarks/objectives.yaml` lists
(or `--methods FILE`) from the recipe's SFT student, evaluates each on a prompt set, and keeps everything under the recipe's
output_dir, so that a rerun skips what is there. `--rows FILE` writes the rows as JSON lines. Settings are chosen on `valid`;
`test` is for what was chosen.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from tdistill.evaluation.metrics import estimate, paired_difference
from tdistill.evaluation.run import EvaluatedSystem, Protocol, evaluate_systems, read_scores
from tdistill.models import find_model, load_model
from tdistill.objectives import bind
from tdistill.pipeline import Run, provenance
from tdistill.progress import say
from tdistill.recipe import load_recipe
from tdistill.rollout.cache import write_json
from tdistill.stages.evaluate import protocol
from tdistill.stages.models import load_teacher, student_tokenizer
from tdistill.stages.rollout import cache
from tdistill.stages.train import start_directory
from tdistill.training.run import read_history, train_student

BASELINE, TRAINED = "sft_continued", "trained.json"


def main() -> None:
    options = _options()
    run = Run(load_recipe(options.recipe, options.override))
    methods = yaml.safe_load(options.methods.read_text())
    names = options.only.split(",") if options.only else list(methods)
    bound = {name: bind(methods[name]) for name in names}
    for stage in ("models", "rollout", "sft"):
        run.execute(stage)
    shared = protocol(run, options.split)
    root = run.root / "objectives" / run_key(run)
    scores = root / "evaluated" / f"{options.split}-{shared.config.num_generations}"
    teacher = lru_cache(partial(load_teacher, run, run.recipe.evaluation.dtype))
    load = partial(load_model, dtype=run.recipe.evaluation.dtype)
    first = [EvaluatedSystem("teacher", "", teacher), EvaluatedSystem("sft", "", lambda: load(find_model(str(start_directory(run)))))]
    evaluate_systems(first, teacher, shared, scores)
    for seed in (int(s) for s in options.seeds.split(",")):
        for name, objective in bound.items():
            directory = root / f"{name}-{seed}"
            if not (directory / TRAINED).exists():
                started = time.perf_counter()
                data = (cache(run, "train", run.recipe.train.teacher_top_p), cache(run, "valid", run.recipe.train.teacher_top_p))
                arguments = run.recipe.train.arguments
                tokenizer = student_tokenizer(run)
                title = directory.name
                train_student(start_directory(run), directory, objective, *data, tokenizer, arguments, seed, title, partial(load_teacher, run))
                write_json(directory / TRAINED, {"seconds": time.perf_counter() - started, "provenance": provenance(run.recipe)})
            found = EvaluatedSystem(directory.name, objective.describe(), partial(load, find_model(str(directory))))
            evaluate_systems([found], teacher, shared, scores)
            say(_line(read_scores(scores, directory.name)))
            if options.rows:
                options.rows.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in rows(root, scores, methods, shared)))


def run_key(run: Run) -> str:
    """Changes with the SFT student, the training arguments and p: students of other settings lie elsewhere."""
    p = run.recipe.train.teacher_top_p or run.recipe.rollout.teacher_top_p
    arguments = json.dumps(run.recipe.train.arguments, sort_keys=True)
    return f"{run.key('sft')}-p{p:g}-{hashlib.sha256(arguments.encode()).hexdigest()[:6]}"


def rows(root: Path, scores: Path, methods: dict[str, Any], shared: Protocol) -> Iterator[dict[str, Any]]:
    """One row per system, and its paired difference from SFT continued with the same seed."""
    for path in sorted((scores / "scores").glob("*.json")):
        record = read_scores(scores, path.stem)
        row: dict[str, Any] = {"system": path.stem, "protocol": shared.describe(), "metrics": _metrics(record)}
        name, _, seed = path.stem.rpartition("-")
        if name in methods and (root / path.stem / TRAINED).exists():
            row |= {"method": name, "seed": int(seed), "objective": record["description"]}
            row |= json.loads((root / path.stem / TRAINED).read_text())
            row["best_step"] = read_history(root / path.stem)["best_step"]
            other = scores / "scores" / f"{BASELINE}-{seed}.json"
            if name != BASELINE and other.exists():
                row["minus_sft_continued"] = _differences(record, read_scores(scores, other.stem))
        yield row


def _metrics(record: dict[str, Any]) -> dict[str, Any]:
    return {k: asdict(estimate(list(v.values()))) for k, v in record["scores"].items() if v}


def _differences(record: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for metric, a in record["scores"].items():
        b = other["scores"][metric]
        shared = sorted(a.keys() & b.keys())
        found[metric] = asdict(paired_difference([a[p] for p in shared], [b[p] for p in shared]))
    return found


def _line(record: dict[str, Any]) -> str:
    return f"{record['name']:28s}" + "  ".join(f"{k} {v['mean']:.3f}±{v['stderr']:.3f}" for k, v in _metrics(record).items())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("override", nargs="*", help="KEY.SUB=VALUE")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--seeds", default="17")
    parser.add_argument("--methods", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--rows", type=Path, help="write the rows here")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
