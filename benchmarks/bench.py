"""Train and measure every method of a recipe with every seed, and write one row each, with the scores of every prompt.

`python benchmarks/bench.py RECIPE [KEY=VALUE …] --rows FILE [--workers N] [--split valid|test] [--only NAME,…]` takes the recipe's
baselines, or the methods that ``--only`` names (``distilled`` is the recipe's own objective), each with all of ``train.seeds``. All start
from one SFT student and learn from one cache. A method and seed whose row stands in the rows' file is not trained again, be it from
another machine: ``sft_fingerprint`` says from which start it was trained. What the output directory holds is kept, so a bench that was
killed goes on. A student whose loss diverges has a row that says so.

`--rates 1e-4,3e-4` trains every method at each learning rate, as NAME@RATE, and `--choose FILE` writes the rate of the lowest teacher NLL.

A folder ``rollouts`` beside the recipe holds roll-outs that came along with it: a recipe that would make the same takes them.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench_rows import START, Scores, Unit, kept_rows, row_of
from pooled_methods import methods, methods_table, pooled
from taken_rollouts import take_rollouts
from told import script
from transformers.utils.logging import disable_progress_bar

from tdistill.evaluation.answer_files import SCORES, read_scores
from tdistill.evaluation.metrics import TEACHER
from tdistill.experiment.answers import answers, divergences
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.evaluation import describe
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import execute, is_complete, make_all
from tdistill.experiment.on_demand import make_missing
from tdistill.experiment.preflight import preflight
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.students import Trained, divergence, start_of_training, students
from tdistill.experiment.systems import START as UNTRAINED
from tdistill.experiment.systems import System, systems
from tdistill.experiment.workers import make_side_by_side
from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.recipe.schema import DISTILLED, Recipe
from tdistill.runtime.errors import ConfigError, NonFiniteLossError
from tdistill.runtime.files import write_json, write_jsonl
from tdistill.runtime.progress import say

SHOWN = ("forward_kl", "reverse_kl", "teacher_nll", "rouge_l", "distinct_2")
USUAL_BASELINE = "sft_continued"


@dataclass(frozen=True)
class Measure:
    """Say how a system is measured on the prompts of a split.

    Args:
        artefacts: returns what is made of it.
        scores: reads these, and returns metric → prompt → value for its row.
    """

    artefacts: Callable[[Experiment, System, str], Sequence[Artefact]]
    scores: Callable[[Experiment, System, str], Scores]


def measurements(experiment: Experiment, system: System, split: str) -> list[Artefact]:
    """Return a system's answers to the prompts of a split, and its divergences there."""
    return [answers(experiment, system, split), divergences(experiment, system, split)]


def usual_scores(experiment: Experiment, system: System, split: str) -> Scores:
    """Return the scores of a system's answers and its divergences."""
    scores: dict[str, dict[str, float]] = {}
    for found in measurements(experiment, system, split):
        scores |= read_scores(found.directory / SCORES)
    return scores


USUAL = Measure(measurements, usual_scores)


class Bench:
    """Hold the students that are asked for: of a recipe, or of the recipe at several learning rates."""

    def __init__(self, options: argparse.Namespace, rates: Sequence[float] = (), measure: Measure = USUAL):
        recipe = open_recipe(options.recipe, options.override)
        unknown = options.only - recipe.train.methods().keys()
        if unknown:
            raise ConfigError(f"{options.recipe} has no {', '.join(sorted(unknown))}. It has {', '.join(recipe.train.methods())}.")
        self.split: str = options.split
        self.measure = measure
        self.beside = Path(options.recipe).parent
        self.only = options.only or recipe.train.baselines.keys() or {DISTILLED}
        self.experiments = {rate: Experiment(recipe if rate is None else at_rate(recipe, rate), self.only) for rate in rates or (None,)}
        self.first = next(iter(self.experiments.values()))

    def units(self) -> dict[Unit, Experiment]:
        """Return every method, at every rate, with every seed."""
        found: dict[Unit, Experiment] = {}
        for rate, experiment in self.experiments.items():
            for name in experiment.recipe.train.methods():
                if name in self.only:
                    found |= {Unit(name, seed, rate): experiment for seed in experiment.recipe.train.seeds}
        return found

    def student(self, unit: Unit) -> Trained:
        """Return the student of a unit. The models and roll-outs must be complete."""
        return next(s for s in students(self.experiments[unit.rate]) if (s.name, s.seed) == (unit.name, unit.seed))

    def make_starts(self) -> None:
        """Make what all students share: the models, the roll-outs and the SFT student."""
        preflight(self.first, ("sft", "train"))
        self.first.prepare()
        execute(self.first, "models")
        take_rollouts(self.first, self.beside / "rollouts")
        execute(self.first, "rollout")
        if self.first.recipe.sft is not None:
            execute(self.first, "sft")

    def is_here(self, unit: Unit) -> bool:
        """Return whether a student is trained and measured on the split, or diverged, in this output directory."""
        experiment, student = self.experiments[unit.rate], self.student(unit)
        if divergence(student.artefact.directory) is not None:
            return True
        wanted = [student.artefact, *self.measure.artefacts(experiment, system_in(experiment, student.artefact.directory), self.split)]
        return all(experiment.is_complete(a) for a in wanted)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the row of every student that is here."""
        if not is_complete(self.first, "sft"):
            return
        here = [unit for unit in self.units() if self.is_here(unit)]
        common = {"split": self.split, "protocol": describe(self.first, self.split), START: start_fingerprint(self.first)}
        for unit in here:
            experiment, student = self.experiments[unit.rate], self.student(unit)
            system = system_in(experiment, student.artefact.directory)
            yield row_of(experiment, student, unit, partial(self.measure.scores, experiment, system, self.split)) | common


def at_rate(recipe: Recipe, rate: float) -> Recipe:
    """Return a recipe whose every method trains at one learning rate."""
    train, own = recipe.train, {"learning_rate": rate}
    baselines = {name: b.model_copy(update={"arguments": b.arguments | own}) for name, b in train.baselines.items()}
    return recipe.model_copy(update={"train": train.model_copy(update={"baselines": baselines, "arguments": train.arguments | own})})


def start_fingerprint(experiment: Experiment) -> str:
    """Return the fingerprint of the weights that every student starts from."""
    return weights_fingerprint(find_model(str(start_of_training(experiment).directory)))


def system_in(experiment: Experiment, directory: Path) -> System:
    """Return the system that lies in a directory."""
    return next(s for s in systems(experiment) if s.artefact.directory == directory)


def make_and_measure(measure: Measure, split: str, recipe: Recipe, directory: Path) -> None:
    """Train the student that lies in a directory and measure it, in a process of its own."""
    train_and_measure(Experiment(recipe), directory, measure, split)


def train_and_measure(experiment: Experiment, directory: Path, measure: Measure, split: str) -> None:
    """Train the student that lies in a directory and measure it on a split. A divergence is a result: it is noted in the directory."""
    system = system_in(experiment, directory)
    try:
        make_all(experiment, [system.artefact])
    except NonFiniteLossError as error:
        say(f"{system.artefact.title}: {error}")
        return
    make_missing(experiment, measure.artefacts(experiment, system, split))


def make_students(asked: Bench, missing: Sequence[Unit], workers: int) -> None:
    """Train and measure the students that are not here, ``workers`` at a time.

    Raises:
        TrainingError: some could not be made; the others are.
    """
    for rate, experiment in asked.experiments.items():
        todo = [asked.student(unit).artefact for unit in missing if unit.rate == rate and not asked.is_here(unit)]
        if workers > 1 and len(todo) > 1:
            make_side_by_side(experiment, todo, workers, partial(make_and_measure, asked.measure, asked.split))
        else:
            for artefact in todo:
                train_and_measure(experiment, artefact.directory, asked.measure, asked.split)


def measured_systems(experiment: Experiment) -> Iterator[tuple[System, dict[str, Any]]]:
    """Yield the teacher, the SFT student, and every student that is complete, each with the columns that name it in a row."""
    start: dict[str, Any] = {START: start_fingerprint(experiment)}
    for system in systems(experiment):
        if system.name == UNTRAINED or not experiment.is_complete(system.artefact):
            continue
        if system.seed is not None:
            yield system, {"system": f"{system.name}-{system.seed}", "method": system.name, "seed": system.seed} | start
        else:
            yield system, {"system": system.name} | ({} if system.name == TEACHER else start)


def check_rows(path: Path, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Raise ``ConfigError`` if a file holds rows that were measured by other settings."""
    if any(row[key] != value for row in rows for key, value in settings.items()):
        raise ConfigError(f"{path} holds rows of other settings than {settings}: give --rows another file.")


def chosen_rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return method → the rate of its lowest teacher NLL. A rate at which every seed diverged is left out."""
    best: dict[str, tuple[float, float]] = {}
    for method in (m for m in methods(rows) if m.finished):
        name, found = method.name.partition("@")[0], (pooled(method.of("teacher_nll")).mean, method.rate)
        best[name] = min(found, best.get(name, found))
    return {name: rate for name, (_, rate) in best.items()}


def parser(description: str | None, option: str = "", option_help: str = "") -> argparse.ArgumentParser:
    """Return a parser of the options that say which students are meant, and of one more that is required."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("recipe", type=Path)
    made.add_argument("override", nargs="*", help="KEY.SUB=VALUE of the recipe, such as train.seeds=[3,5]")
    made.add_argument("--only", type=lambda s: {n for n in s.split(",") if n}, default=set(), help="comma-separated names of methods")
    made.add_argument("--split", choices=("valid", "test"), default="valid")
    made.add_argument("--rows", type=Path, required=True, help="write the rows here, and keep those that it holds")
    if option:
        made.add_argument(option, required=True, help=option_help)
    return made


def bench_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options of a bench."""
    made = parser(description)
    made.add_argument("--workers", type=int, default=2, help="students trained side by side")
    made.add_argument("--rates", type=lambda s: [float(r) for r in s.split(",")], default=[], help="learning rates to try, such as 1e-4,3e-4")
    made.add_argument("--choose", type=Path, help="write each method's best rate here")
    return made


def make_rows(asked: Bench, path: Path, workers: int) -> list[dict[str, Any]]:
    """Train and measure the students that have no row in a file, add their rows to it, and return the rows of all that are asked for.

    Raises:
        ConfigError: see ``kept_rows``.
        TrainingError: some could not be made; the rows of the others are written.
    """
    kept = kept_rows(path, asked.units(), asked.split)
    missing = [unit for unit in asked.units() if unit.key not in kept]
    made: dict[tuple[str, int], dict[str, Any]] = {}
    if missing:
        asked.make_starts()
        try:
            make_students(asked, missing, workers)
        finally:
            made = {(row["method"], row["seed"]): row for row in asked.rows()}
            write_jsonl(path, [row for _, row in sorted((made | kept).items())])
    found = made | kept
    say(f"{len(found)} rows → {path}")
    return [found[unit.key] for unit in asked.units() if unit.key in found]


def main() -> None:
    options = bench_parser(__doc__).parse_intermixed_args()
    report(make_rows(Bench(options, options.rates), options.rows, options.workers), options.choose)


def report(rows: Sequence[dict[str, Any]], choose: Path | None) -> None:
    """Print the table of the methods that were asked for, and write the best rates."""
    starts = sorted({row[START] for row in rows})
    if len(starts) > 1:
        say(f"Students of {len(starts)} starts ({', '.join(starts)}): another machine's SFT ends in other bits.")
    finished = [m.name for m in methods(rows) if m.finished]
    if finished:
        print(methods_table(rows, USUAL_BASELINE if USUAL_BASELINE in finished else finished[0], SHOWN))
    if choose:
        write_json(choose, chosen_rates(rows))


if __name__ == "__main__":
    disable_progress_bar()  # ours are enough
    with script():
        main()
