"""Measure every system of a run at several decoding temperatures. Existing measurements are kept: a new temperature adds its own cost only."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tdistill.evaluation.answers import ANSWER_METRICS
from tdistill.evaluation.metrics import METRICS
from tdistill.experiment.evaluation import ANSWERS, SCORES, EvaluatedSystem, Protocol, answer_scores, read_scores
from tdistill.experiment.models import load_teacher
from tdistill.experiment.pipeline import Run, disk_errors, provenance
from tdistill.experiment.run_files import read_scores_file
from tdistill.experiment.run_forms import SweepScoresForm
from tdistill.experiment.systems import check_references, protocol, systems
from tdistill.experiment.tasks import keyed_directory, require_students
from tdistill.pages.markdown import to_markdown
from tdistill.pages.tables import ARROWS, Cell, Table, format_estimate, right_aligned
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import write_json
from tdistill.statistics.equal_entropy import ENTROPY
from tdistill.statistics.estimate import estimate

TEMPERATURES, SWEEP = "temperatures", "sweep.json"
SHOWN = ("teacher_nll", "rouge_l", "entropy", "distinct_2", "mean_length")
UNTRAINED = "start"  # what it writes is noise at any temperature


def parse_temperatures(text: str) -> tuple[float, ...]:
    """Return the temperatures in a list such as "0.5,1", ascending, each once.

    Raises:
        ConfigError: one is no positive number or has more than six digits, or there is none.
    """
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError as error:
        raise ConfigError(f"--temperatures takes numbers separated by commas, such as 0.5,0.7,1; got {text!r}.") from error
    if not found or not all(1e-3 <= t <= 1e3 for t in found):
        raise ConfigError(f"--temperatures takes numbers from 0.001 to 1000, such as 0.5,0.7,1; got {text!r:.80}.")
    if finer := [t for t in found if float(f"{t:g}") != t]:  # directories are named by six digits
        raise ConfigError(f"--temperatures takes numbers of at most six digits, got {finer[0]!r}: round it to {finer[0]:g}.")
    return tuple(found)


@dataclass(frozen=True)
class Measured:
    """Hold the scores of one system at one temperature."""

    system: str
    temperature: float
    scores: dict[str, dict[str, float]]  # metric → prompt → value


class TemperatureRun:
    """Measure a run's systems at several decoding temperatures, on the prompts of a split, otherwise by the recipe's protocol.

    ``others``, which lie in ``place``, are measured in place of the run's own systems.

    Raises:
        ConfigError: a temperature that is none, students not trained yet, or several processes.
    """

    def __init__(self, run: Run, temperatures: str, split: str = "test", others: Sequence[EvaluatedSystem] = (), place: Path | None = None):
        self.run, self.split, self.others, self.place = run, split, others, place
        self.temperatures = parse_temperatures(temperatures)
        if not others:
            require_students(run, "--temperatures")
        check_references(run, split)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings that change a number, apart from the temperature."""
        c = self.run.recipe.evaluation
        length = c.max_completion_length or self.run.recipe.rollout.max_completion_length
        free = {"temperature", "num_samples_shown", "max_completion_length", "seed"}
        return {"split": self.split, "sampling_seed": self.run.recipe.seed, "max_completion_length": length} | c.model_dump(exclude=free)

    @cached_property
    def directory(self) -> Path:
        """Return ``output_dir/temperatures/KEY``, or ``temperatures/KEY`` in the directory of other systems."""
        return keyed_directory(self.place or self.run.root, self.run, TEMPERATURES, self.settings)

    @cached_property
    def systems(self) -> list[EvaluatedSystem]:
        """Return the systems to measure, in the table's order."""
        return list(self.others) or [s for s in systems(self.run) if s.name != UNTRAINED]

    def measure(self) -> list[Measured]:
        """Answer and score what is missing; a model is loaded once for all temperatures, and only if it has to answer."""
        load_own_teacher = cache(partial(load_teacher, self.run, self.run.recipe.evaluation.dtype))
        with disk_errors(self.directory):
            for system in self.systems:
                todo = [t for t in self.temperatures if not (self._is_measured(system.name, t) or self._take_over(system, t))]
                if todo:
                    model = load_own_teacher() if system.name == "teacher" else system.load()
                for t in todo:
                    self._measure(system, model, load_own_teacher(), t)
            about = {"settings": self.settings, "recipe": self.run.recipe.model_dump(), "provenance": provenance(self.run.recipe)}
            write_json(self.directory / SWEEP, about)
        return read_sweep(self.directory, [s.name for s in self.systems])

    def report(self) -> str:
        """Measure, and say what came out."""
        table = sweep_table(self.measure())
        return f"{to_markdown(table)}\n\n{table.caption}\nscores: {self.directory}"

    def _take_over(self, system: EvaluatedSystem, temperature: float) -> bool:
        """Take the scores of the evaluate stage, which drew the very same answers; False if they are of others, or from before entropies."""
        run = self.run
        if self.others or self.split != "test" or temperature != run.recipe.evaluation.temperature or not run.is_complete("evaluate"):
            return False
        scores = read_scores(run.directory("evaluate"), system.name)["scores"]
        if not scores.get(ENTROPY):
            return False
        self._write(system, temperature, {m: scores[m] for m in ANSWER_METRICS if m in scores})
        return True

    def _is_measured(self, name: str, temperature: float) -> bool:
        path = self._path(name, temperature)
        return os.path.lexists(path) and bool(read_scores_file(path, SweepScoresForm, name=name, temperature=temperature))

    def _path(self, name: str, temperature: float) -> Path:
        return self.directory / f"{temperature:g}" / SCORES / f"{name}.json"

    def _measure(self, system: EvaluatedSystem, model: PreTrainedModel, teacher: PreTrainedModel, temperature: float) -> None:
        shared, path = self._shared, self._path(system.name, temperature)
        at = replace(shared, config=shared.config.model_copy(update={"temperature": temperature}))
        (path.parents[1] / ANSWERS).mkdir(parents=True, exist_ok=True)
        scores = answer_scores(model, system.name, teacher, at, path.parents[1], f"{system.name}, T = {temperature:g}")
        self._write(system, temperature, scores)

    def _write(self, system: EvaluatedSystem, temperature: float, scores: dict[str, dict[str, float]]) -> None:
        path = self._path(system.name, temperature)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"name": system.name, "description": system.description, "temperature": temperature, "scores": scores})

    @cached_property
    def _shared(self) -> Protocol:
        return protocol(self.run, self.split)


def read_sweep(directory: Path, names: Sequence[str]) -> list[Measured]:
    """Return what a sweep holds of some systems: system by system in their order, temperatures ascending.

    Raises:
        OutputError: scores are damaged, or those of another system or temperature.
    """
    temperatures = sorted(filter(None, map(_temperature_of, directory.iterdir())))
    found = []
    for name in names:
        for t in temperatures:
            path = directory / f"{t:g}" / SCORES / f"{name}.json"
            if os.path.lexists(path):
                found.append(Measured(name, t, read_scores_file(path, SweepScoresForm, name=name, temperature=t)["scores"]))
    return found


def _temperature_of(path: Path) -> float | None:
    """Return the temperature whose folder this is; None for a folder of something else."""
    try:
        value = float(path.name)
    except ValueError:
        return None
    return value if path.is_dir() and 0 < value < math.inf and path.name == f"{value:g}" else None


def sweep_table(measured: Sequence[Measured]) -> Table:
    """Build a table with one line for each system and temperature."""
    header = ["system", "T", *(METRICS[m][0] + ARROWS[METRICS[m][2]] for m in SHOWN)]
    rows = [
        [
            Cell(found.system),
            Cell(f"{found.temperature:g}"),
            *(Cell(format_estimate(estimate(list(found.scores.get(m, {}).values())))) for m in SHOWN),
        ]
        for found in measured
    ]
    caption = (
        "Mean over prompts ± standard error. Entropy: of the distribution drawn from, nats a token. At one temperature a sharper student "
        "writes likelier text: compare systems at equal entropy, which `tdistill compare` does."
    )
    return Table(caption, header, rows, right_aligned(len(header)))
