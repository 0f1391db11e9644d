"""Objectives against each other: same start, same cache, same steps, several training seeds.

`python benchmarks/objectives.py RECIPE --split valid --seeds 17 [--only NAME,…]` trains what `benchmarks/objectives.yaml` lists
(or `--methods FILE`) from the recipe's SFT student, evaluates each on a prompt set, and keeps everything under the recipe's
output_dir, so that a rerun skips what is there and prints the table. `--rows FILE` writes JSON lines. Settings are chosen on `valid`;
`test` is for what was chosen.

A student whose loss stops being a number is recorded as diverged.

`--rates 3e-4,1e-3 --split valid` trains every method at each learning rate, and `--choose FILE` writes the best of each, by teacher NLL;
`--rates FILE` takes them from there.
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

import numpy as np
from tdistill.experiment.pipeline import Run, provenance

from tdistill.experiment.evaluation import EvaluatedSystem, Protocol, evaluate_systems, read_scores
from tdistill.experiment.models import load_teacher
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.students import fit_inputs, start_directory
from tdistill.experiment.systems import protocol
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.objectives import bind
from tdistill.recipe.schema import BaselineConfig, TrainConfig
from tdistill.recipe.text import parse_yaml
from tdistill.runtime.errors import ConfigError, NonFiniteLossError
from tdistill.runtime.files import write_json, write_jsonl
from tdistill.runtime.progress import say
from tdistill.statistics.estimate import estimate, paired_difference
from tdistill.training.fit import fit
from tdistill.training.log import read_history

BASELINE, TRAINED, DIVERGED = "sft_continued", "trained.json", "diverged.json"


def main() -> None:
    options = _options()
    run = Run(open_recipe(options.recipe, options.override))
    # Read as a recipe's baselines are: an objective, or an objective with arguments and student roll-outs of its own.
    methods = TrainConfig(objective={"name": "nll"}, baselines=parse_yaml(options.methods.read_bytes(), str(options.methods))).baselines
    methods = at_rates(methods, options.rates)
    methods = {n: m for n, m in methods.items() if not options.only or n.partition("@")[0] in options.only.split(",")}
    for method in methods.values():
        bind(method.objective)  # a wrong argument is an error before anything long starts
    for stage in ("models", "rollout", "sft"):
        run.execute(stage)
    shared = protocol(run, options.split)
    root = run.root / "objectives" / run_key(run)
    scores = root / "evaluated" / evaluation_key(run, options.split)
    teacher = lru_cache(partial(load_teacher, run, run.recipe.evaluation.dtype))
    load = partial(load_model, dtype=run.recipe.evaluation.dtype)
    if not options.students_only:
        start = partial(load, find_model(str(start_directory(run))))
        evaluate_systems([EvaluatedSystem("teacher", "", teacher), EvaluatedSystem("sft", "", start)], teacher, shared, scores)
    for seed in (int(s) for s in options.seeds.split(",")):
        for name, method in methods.items():
            directory = root / f"{name}-{seed}"
            if train(run, directory, method, seed):
                found = EvaluatedSystem(directory.name, bind(method.objective).describe(), partial(load, find_model(str(directory))))
                evaluate_systems([found], teacher, shared, scores)
                say(_line(read_scores(scores, found.name)))
            lines = list(rows(root, scores, methods, shared))
            if options.rows:
                write_jsonl(options.rows, lines)
    print(table(lines))
    if options.choose:
        write_json(options.choose, chosen_rates(lines))


def train(run: Run, directory: Path, method: BaselineConfig, seed: int) -> bool:
    """Train a student unless it is there; False if its loss stopped being a number, which is a result too and is kept."""
    config, objective = run.recipe.train, bind(method.objective)
    if (directory / DIVERGED).exists():
        return False
    if (directory / TRAINED).exists():
        found, asked = read_history(directory)["objective"], objective.describe()
        if found != asked:
            raise ConfigError(f"{directory} was trained by {found}, and {asked} is asked for: rename the method.")
        return True
    whole = config.model_copy(update={"baselines": {"own": method}}).methods()["own"]
    record = whole.model_dump(include={"arguments", "on_policy", "value"}) | {"provenance": provenance(run.recipe)}
    started = time.perf_counter()
    try:
        fit(fit_inputs(run, start_directory(run), whole), whole, seed, directory, directory.name)
    except NonFiniteLossError as error:
        write_json(directory / DIVERGED, record | {"objective": objective.describe(), "error": str(error)})
        say(f"{directory.name}: {error}")
        return False
    write_json(directory / TRAINED, record | {"seconds": time.perf_counter() - started})
    return True


def at_rates(methods: dict[str, BaselineConfig], rates: str | None) -> dict[str, BaselineConfig]:
    """Each method at each of several learning rates, as NAME@RATE, or at its own from a file that ``--choose`` wrote."""
    if rates is None:
        return methods
    if rates.endswith(".json"):
        own = json.loads(Path(rates).read_text())
        return {name: _with_rate(method, own[name]) for name, method in methods.items()}
    return {f"{name}@{float(rate):g}": _with_rate(method, float(rate)) for name, method in methods.items() for rate in rates.split(",")}


def _with_rate(method: BaselineConfig, rate: float) -> BaselineConfig:
    return method.model_copy(update={"arguments": method.arguments | {"learning_rate": rate}})


def chosen_rates(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Method → the rate of its lowest teacher NLL."""
    best: dict[str, tuple[float, float]] = {}
    for row in (r for r in lines if "seeds" in r):
        name, _, rate = row["method"].partition("@")
        found = (row["metrics"]["teacher_nll"]["mean"], float(rate))
        best[name] = min(found, best.get(name, found))
    return {name: rate for name, (_, rate) in best.items()}


def run_key(run: Run) -> str:
    """Changes with the SFT student, p, and what all methods share in training: students of other settings lie elsewhere."""
    train = run.recipe.train
    p = train.teacher_top_p or run.recipe.rollout.teacher_top_p
    others = train.model_dump(exclude={"objective", "baselines", "teacher_top_p", "arguments", "monitor"}, exclude_defaults=True)
    digest = hashlib.sha256(json.dumps(train.arguments | others, sort_keys=True).encode()).hexdigest()[:6]
    return f"{run.key('sft')}-p{p:g}-{digest}"


def evaluation_key(run: Run, split: str) -> str:
    """Split and answers a prompt, and a digest of what else shapes answers and scores unless all of it is as by default."""
    config = run.recipe.evaluation
    others = config.model_dump(exclude={"num_generations", "num_samples_shown", "batch_size", "dtype"}, exclude_defaults=True)
    digest = "-" + hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:6] if others else ""
    return f"{split}-{config.num_generations}{digest}"


def rows(root: Path, scores: Path, methods: dict[str, Any], shared: Protocol) -> Iterator[dict[str, Any]]:
    """The protocol, one row a system, then one a method: averaged over its seeds, and less SFT continued with the same seeds.

    A student whose training diverged has a row that says so, and no scores.
    """
    yield {"protocol": shared.describe()}
    for path in sorted(root.glob(f"*/{DIVERGED}")):
        name, _, seed = path.parent.name.rpartition("-")
        if name in methods:
            record = json.loads(path.read_text())
            yield {"system": path.parent.name, "method": name, "seed": int(seed), "diverged": record["error"]} | _about(record)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted((scores / "scores").glob("*.json")):
        record = read_scores(scores, path.stem)
        row: dict[str, Any] = {"system": path.stem, "metrics": _metrics(record["scores"])}
        name, _, seed = path.stem.rpartition("-")
        if name in methods and (root / path.stem / TRAINED).exists():
            found.setdefault(name, {})[int(seed)] = record["scores"]
            trained, history = json.loads((root / path.stem / TRAINED).read_text()), read_history(root / path.stem)
            row |= {"method": name, "seed": int(seed), "best_step": history["best_step"], "training_seconds": trained["seconds"]}
            row |= {"objective": record["description"]} | _about(trained)
        yield row
    yield from averages(found)


def averages(found: dict[str, dict[int, dict[str, dict[str, float]]]]) -> Iterator[dict[str, Any]]:
    """Method → seed → metric → prompt → value, as one row a method."""
    for name, by_seed in found.items():
        row = {"method": name, "seeds": sorted(by_seed), "metrics": _metrics(_average(by_seed))}
        row["sd_over_seeds"] = {k: _spread([estimate(list(s[k].values())).mean for s in by_seed.values()]) for k in row["metrics"]}
        common = sorted(by_seed.keys() & found.get(BASELINE, {}).keys())
        if name != BASELINE and common:
            mine, theirs = (_average({s: by[s] for s in common}) for by in (by_seed, found[BASELINE]))
            row["minus_sft_continued"] = {"seeds": common, "metrics": _differences(mine, theirs)}
        yield row


def _about(record: dict[str, Any]) -> dict[str, Any]:
    """Of what was written beside a student: how it was trained, where and with what."""
    kept = ("objective", "arguments", "on_policy", "value")
    versions = ("git_commit", "machine", "torch", "transformers", "tdistill")
    return {k: record[k] for k in kept if k in record} | {k: record["provenance"][k] for k in versions}


def _average(by_seed: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Metric → prompt → mean over seeds, of the metrics that all have: what was scored earlier may lack one."""
    records = list(by_seed.values())
    shared = [metric for metric in records[0] if all(r.get(metric) for r in records)]
    return {metric: {prompt: float(np.mean([r[metric][prompt] for r in records])) for prompt in records[0][metric]} for metric in shared}


def _spread(means: list[float]) -> float | None:
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def _metrics(scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {k: asdict(estimate(list(v.values()))) for k, v in scores.items() if v}


def _differences(mine: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> dict[str, Any]:
    found = {}
    for metric, a in mine.items():
        if metric not in theirs:
            continue
        shared = sorted(a.keys() & theirs[metric].keys())
        found[metric] = asdict(paired_difference([a[p] for p in shared], [theirs[metric][p] for p in shared]))
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """The methods as a Markdown table: mean, ± one standard error over prompts, spread over seeds in brackets."""
    shown = ("forward_kl", "reverse_kl", "teacher_nll", "rouge_l", "distinct_2")
    out = ["| method | seeds | " + " | ".join(shown) + " | Δ forward_kl | Δ teacher_nll |", "|---" * (len(shown) + 4) + "|"]
    for row in (r for r in lines if "seeds" in r):
        cells = [f"`{row['method']}`", str(len(row["seeds"]))]
        for key in shown:
            m, sd = row["metrics"][key], row["sd_over_seeds"][key]
            digits = 1 if key == "rouge_l" else 3
            cells.append(f"{m['mean']:.{digits}f} ± {m['stderr']:.{digits}f}" + (f" [{sd:.{digits}f}]" if sd is not None else ""))
        differences = row.get("minus_sft_continued", {}).get("metrics", {})
        for key in ("forward_kl", "teacher_nll"):
            d = differences.get(key)
            cells.append(f"{d['mean']:+.3f} ± {d['stderr']:.3f}" if d else "–")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def _line(record: dict[str, Any]) -> str:
    return f"{record['name']:28s}" + "  ".join(f"{k} {v['mean']:.3f}±{v['stderr']:.3f}" for k, v in _metrics(record["scores"]).items())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("override", nargs="*", help="KEY.SUB=VALUE")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--seeds", default="17")
    parser.add_argument("--methods", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--rates", help="learning rates to try, comma-separated, or a file with one for each method")
    parser.add_argument("--choose", type=Path, help="write each method's best rate here")
    parser.add_argument("--rows", type=Path, help="write the rows here")
    parser.add_argument("--students-only", action="store_true", help="don't evaluate the teacher and the SFT student")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
