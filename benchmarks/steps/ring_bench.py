"""Run a sweep of World 0 and write a row for each setting, method and seed.

`python benchmarks/steps/ring_bench.py SWEEP [--only METHOD,…]` reads ``ring.yaml``. A training whose rows exist is not run again: a
stopped sweep goes on. The seeds of a group are trained at once, on one core; a seed's texts depend on the seeds that it is trained with.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from ring_student import Students, World
from ring_training import Method, Point, Setting, run_sft, train
from ring_world import Ring, best_ways, easy_optimum, measure

sys.path.append(str(Path(__file__).parents[1]))
from told import script

from tdistill.runtime.errors import ConfigError, nearest
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import bar, say

HERE = Path(__file__).parent
ROWS = HERE.parents[1] / "docs" / "results" / "steps-ring.jsonl.xz"
SEEDS = list(range(10))  # of a sweep that names no groups of seeds: one group
RATES = "rates"  # the sweep that chooses the learning rates, unless another one is named
MAIN = Setting(Ring(steps=16, keys=32), batch=32)
SFT = "sft"
DIGITS = 5
CURVE = ("greedy", "sampled")  # what a row keeps of the way to the end
SAID = ("greedy", "sampled", "kl")


@dataclass(frozen=True)
class Job:
    """Hold one training: a method in a setting, with a group of seeds."""

    sweep: str
    name: str  # of the method
    setting: Setting
    method: Method
    rate: float
    seeds: tuple[int, ...]

    @property
    def about(self) -> dict[str, Any]:
        """Return the keys and values that distinguish the rows of this job from others."""
        own = {"setting": asdict(self.setting), "method_settings": asdict(self.method), "rate": self.rate, "seeds": list(self.seeds)}
        return {"sweep": self.sweep, "method": self.name} | own


def jobs(sweep: str, plan: Mapping[str, Any], rates: Mapping[str, float], only: set[str] | None = None) -> Iterator[Job]:
    """Yield the trainings of a sweep, in an order in which those of one setting follow each other; ``only`` of some methods.

    Raises:
        ConfigError: the sweep or a method is unknown, a value is out of range, or a method has no learning rate yet.
    """
    if sweep not in plan["sweeps"]:
        raise ConfigError(f"ring.yaml has no sweep {sweep!r}.{nearest(sweep, plan['sweeps'])} It has {', '.join(plan['sweeps'])}.")
    about = plan["sweeps"][sweep]
    varied = about.get("vary", {})
    for values in itertools.product(*varied.values()):
        changes = dict(zip(varied, values, strict=True))
        names = [name for name in about.get("methods", plan["methods"]) if not only or name in only]
        for seeds, name in itertools.product(about.get("seeds", [SEEDS]), names):
            settings = {
                "setting": _merged(asdict(MAIN), about.get("setting", {})),
                "method": _merged({}, plan["methods"][name]),
                "rate": rates.get(name),
            }
            for path, value in changes.items():
                _set(settings, path, value)
            if settings["rate"] is None:
                raise ConfigError(f"{name} has no learning rate: run the sweep {about.get('rates', RATES)!r} first.")
            yield Job(sweep, name, _setting(settings["setting"]), Method(**settings["method"]), float(settings["rate"]), tuple(seeds))


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merged(merged.get(key) or {}, value) if isinstance(value, Mapping) else value
    return merged


def _set(settings: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        settings = settings[parent]
    settings[last] = value


def chosen_rates(rows: Sequence[Mapping[str, Any]], sweep: str = RATES) -> dict[str, float]:
    """Return method → the rate of the highest greedy accuracy, then share of right steps, by the mean over the seeds of a sweep over rates."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for row in rows:
        if row["sweep"] == sweep and row["method"] != SFT:
            found.setdefault((row["method"], row["rate"]), []).append((row["greedy"], row["right_steps"]))
    best: dict[str, tuple[tuple[float, ...], float]] = {}
    for (name, rate), scores in found.items():
        mean = tuple(round(sum(column) / len(scores), 3) for column in zip(*scores, strict=True))
        best[name] = max(best.get(name, ((-1.0,), 0.0)), (mean, rate))
    return {name: rate for name, (_, rate) in best.items()}


class Starts:
    """Keep the students after SFT of the newest setting: all methods start from them."""

    def __init__(self) -> None:
        self.key: Any = None

    def of(self, job: Job) -> tuple[Students, World]:
        """Return a copy of the students of a job's setting, and their worlds."""
        if self.key != (job.setting, job.seeds):
            self.key, self.students = (job.setting, job.seeds), run_sft(job.setting, list(job.seeds))
            self.world = World(job.setting.ring, job.seeds, job.setting.top_p)
        copy = Students(job.setting.ring, job.setting.width, list(job.seeds))
        copy.load_state_dict(self.students.state_dict())
        return copy, self.world


def run(job: Job, starts: Starts, sft_row: bool) -> list[dict[str, Any]]:
    """Train a job's students, and return one row a seed; with those of the SFT students first, if asked."""
    students, world = starts.of(job)
    rows = []
    if sft_row:
        start = Point(0, 0.0, measure(job.setting.ring, students.table(job.setting.ring), world.teacher, world.right))
        rows += _rows(job.about | {"method": SFT, "method_settings": {}, "rate": None}, [start], students, world)
    curve = []
    steps = job.setting.train_steps * job.method.times
    with bar(f"{job.sweep}: {job.name}", steps, "steps") as progress:
        for point in train(students, world, job.setting, job.method, job.rate, steps):
            progress.advance(point.step - (curve[-1].step if curve else 0))
            curve.append(point)
    return rows + _rows(job.about, curve, students, world)


def _rows(about: dict[str, Any], curve: list[Point], students: Students, world: World) -> list[dict[str, Any]]:
    optimum, _ = best_ways(world.ring, students.table(world.ring), world.teacher)
    rows = []
    for place, seed in enumerate(world.seeds):
        scores = {f.name: _short(getattr(curve[-1].measured, f.name)[place]) for f in fields(curve[-1].measured)}
        own = {
            "seed": seed,
            **scores,
            "easy_optimum": _short(easy_optimum(world.ring)),
            "best_ways_kl": _short(optimum[place]),  # with this student's symbols, and the best choice of ways
            "seconds": _short(curve[-1].seconds / len(world.seeds)),
            "curve": [
                {"step": p.step, "greedy": _short(p.measured.greedy[place]), "sampled": _short(p.measured.sampled[place])} for p in curve
            ],
            "parameters": sum(p[0].numel() for p in students.body),
        }
        rows.append(about | own)
    return rows


def _short(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def run_sweep(
    sweep: str, plan: Mapping[str, Any], path: Path, only: set[str] | None = None, rates: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Run the trainings that a sweep lacks, write their rows into a file with the others, and return all rows.

    Args:
        sweep: name of the sweep.
        plan: the content of ``ring.yaml``.
        path: the file of rows. It need not exist.
        only: names of methods; None: all of the sweep.
        rates: method → learning rate; None: those that the rows of a sweep in the file choose: of ``rates``, or of the one that the plan names.
    """
    rows: list[dict[str, Any]] = read_jsonl(path) if path.exists() else []
    starts = Starts()
    chosen = chosen_rates(rows, plan["sweeps"].get(sweep, {}).get("rates", RATES)) if rates is None else rates
    for job in list(jobs(sweep, plan, chosen, only)):
        if any(_is_of(row, job) for row in rows):
            continue
        known = any(row["method"] == SFT and _setting(row["setting"]) == job.setting and row["seeds"] == list(job.seeds) for row in rows)
        rows += (made := run(job, starts, not known))
        write_jsonl(path, rows)
        own = [row for row in made if row["method"] == job.name]
        means = {name: sum(row[name] for row in own) / len(own) for name in SAID}
        say(f"{sweep} {job.name} {job.rate:g}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    return rows


def _is_of(row: Mapping[str, Any], job: Job) -> bool:
    """Tell whether a row is of a job. Settings that came later than the row have their defaults there."""
    if row["method"] == SFT:
        return False
    settings = {"method_settings": asdict(Method(**row["method_settings"])), "setting": asdict(_setting(row["setting"]))}
    return all((row | settings)[key] == value for key, value in job.about.items())


def _setting(values: Mapping[str, Any]) -> Setting:
    return Setting(**{**values, "ring": Ring(**values["ring"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="+")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--only", type=lambda s: {n for n in s.split(",") if n})
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    plan = yaml.safe_load((HERE / "ring.yaml").read_text())
    for sweep in options.sweep:
        run_sweep(sweep, plan, options.rows, options.only)


if __name__ == "__main__":
    with script():
        main()
