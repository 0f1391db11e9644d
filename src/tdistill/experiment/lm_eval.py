"""Measure every system of a run on tasks of EleutherAI's lm-evaluation-harness, an optional extra. What is already measured is kept."""

import difflib
import hashlib
import importlib
import importlib.util
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tdistill.experiment.evaluation import EvaluatedSystem
from tdistill.experiment.models import student_tokenizer
from tdistill.experiment.pipeline import Run, disk_errors, provenance
from tdistill.experiment.run_files import advice_for, read_run_file
from tdistill.experiment.run_forms import LmEvalForm
from tdistill.experiment.systems import systems
from tdistill.experiment.tasks import keyed_directory, require_students
from tdistill.pages.markdown import to_markdown
from tdistill.pages.tables import Align, Cell, Table, format_estimate
from tdistill.runtime.errors import ConfigError, DataError, OutputError
from tdistill.runtime.files import write_json
from tdistill.runtime.progress import say
from tdistill.statistics.estimate import Estimate

LM_EVAL_DIRECTORY = "lm_eval"
# The parts of lm-eval's results that are kept; the rest describes the machine at length.
KEPT = ("results", "groups", "configs", "versions", "n-shot", "n-samples", "higher_is_better")


@dataclass(frozen=True)
class LmEvalOptions:
    """Hold the options that the command line gives beside the recipe."""

    tasks: str  # names, groups, tags or patterns, separated by commas
    include_path: Path | None = None  # a directory of task YAMLs of one's own
    limit: int | None = None  # the first n documents of every task


class LmEvalRun:
    """Measure a run's systems on harness tasks. The constructor makes every check that needs no model.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown, or students are not trained yet.
        DataError: the directory of YAMLs is missing, or a task can't be loaded (its data may have to be downloaded).
    """

    def __init__(self, run: Run, options: LmEvalOptions):
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError("--lm-eval needs the package lm-eval: pip install 'tdistill[lm-eval]'")
        self.run, self.options = run, options
        self.harness: Any = importlib.import_module("lm_eval")
        if options.include_path is not None and not options.include_path.is_dir():
            raise DataError(f"--lm-eval-include-path {options.include_path} is no directory.")
        include = str(options.include_path) if options.include_path else None
        self.manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=include)
        self.names = matched(options.tasks, self.manager)
        require_students(run, "--lm-eval")
        try:
            self.manager.load(list(self.names))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"lm-eval can't load {', '.join(self.names)} ({type(error).__name__}: {error}). Its data may be out of reach."
            ) from error

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings that change a number."""
        c = self.run.recipe.evaluation
        return {
            "tasks": list(self.names),
            "include": content_of(self.options.include_path),
            "limit": self.options.limit,
            "dtype": c.dtype,
            "batch_size": c.batch_size,
            "lm_eval": self.harness.__version__,
        }

    @cached_property
    def directory(self) -> Path:
        """Return ``output_dir/lm_eval/KEY``."""
        return keyed_directory(self.run.root, self.run, LM_EVAL_DIRECTORY, self.settings)

    def measure(self) -> dict[str, dict[str, Any]]:
        """Write ``SYSTEM.json`` for every system that has none, and return system → what it holds."""
        found = {}
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            for system in systems(self.run):
                path = self.directory / f"{system.name}.json"
                if not os.path.lexists(path):
                    say(f"{system.name}: lm-eval {', '.join(self.names)}")
                    write_json(path, self._measure(system))
                found[system.name] = read_results(path, system.name)
        return found

    def report(self) -> str:
        """Measure, and say what came out: a Markdown table and where the results are."""
        table = lm_eval_table(self.measure())
        return f"{to_markdown(table)}\n\n{table.caption}\nresults: {self.directory}"

    def _measure(self, system: EvaluatedSystem) -> dict[str, Any]:
        huggingface = importlib.import_module("lm_eval.models.huggingface")
        logging.getLogger(huggingface.__name__).setLevel(logging.ERROR)  # it warns of every model that is already in memory
        batch_size = self.run.recipe.evaluation.batch_size
        model = huggingface.HFLM(pretrained=system.load(), tokenizer=student_tokenizer(self.run), batch_size=batch_size)
        found = self.harness.simple_evaluate(
            model=model, tasks=list(self.names), task_manager=self.manager, limit=self.options.limit, log_samples=False
        )
        kept = {k: found[k] for k in KEPT if k in found}
        return {
            "system": system.name,
            "description": system.description,
            **self.settings,
            **json.loads(json.dumps(kept, default=str)),  # configurations may hold functions
            "provenance": provenance(self.run.recipe),
        }


def read_results(path: Path, system: str) -> dict[str, Any]:
    """Read a system's results.

    Raises:
        OutputError: the file is damaged, or another system's.
    """
    found = read_run_file(path, LmEvalForm)
    if found["system"] != system:
        raise OutputError(f"{path} holds the results of {found['system']!r}. {advice_for(path)}")
    return found


def matched(text: str, manager: Any) -> tuple[str, ...]:
    """Return the harness's names for a list such as ``"arc_easy, mmlu_*"``.

    Raises:
        ConfigError: none is named, or a name or pattern matches none.
    """
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if not wanted:
        raise ConfigError(f"--lm-eval names no task, got {text!r}. `lm-eval ls tasks` lists them.")
    names: dict[str, None] = {}
    for name in wanted:
        found = manager.match_tasks([name])
        if not found:
            close = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"lm-eval has no task {name!r}.{hint} `lm-eval ls tasks` lists them; --lm-eval-include-path adds others.")
        names.update(dict.fromkeys(found))
    return tuple(names)


def content_of(directory: Path | None) -> str | None:
    """Return a hash of all files below a directory and their names."""
    if directory is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(directory)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def lm_eval_table(found: dict[str, dict[str, Any]]) -> Table:
    """Build a table: one line for each task and metric, one column for each system, with lm-eval's own standard errors."""
    measures: dict[tuple[str, str], None] = {}
    for record in found.values():
        for task, values in record["results"].items():
            measures.update({(task, key): None for key, v in values.items() if _is_metric(key, v)})
    lines = [
        [Cell(task), Cell(key.removesuffix(",none")), *(Cell(_format(record["results"].get(task, {}), key)) for record in found.values())]
        for task, key in measures
    ]
    align: list[Align] = ["right"] * (2 + len(found))
    align[:2] = ["left", "left"]
    return Table("lm-eval, ± its standard error.", ["task", "metric", *found], lines, align)


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and not key.partition(",")[0].endswith("_stderr") and isinstance(value, int | float)


def _format(values: dict[str, Any], key: str) -> str:
    metric, _, kind = key.partition(",")
    if key not in values:
        return format_estimate(None)
    spread = values.get(f"{metric}_stderr,{kind}")
    return format_estimate(Estimate(float(values[key]), float(spread) if isinstance(spread, int | float) else float("nan"), 0))
