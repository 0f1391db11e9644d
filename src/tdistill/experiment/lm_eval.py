"""Measure every system on tasks of EleutherAI's lm-evaluation-harness, an optional extra. What is already measured is kept."""

import difflib
import hashlib
import importlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tdistill.evaluation.answer_files import advice
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.models import computing, load_own_tokenizer, teacher
from tdistill.experiment.on_demand import make_missing, require_students
from tdistill.experiment.provenance import provenance
from tdistill.experiment.systems import System, load_system, systems
from tdistill.pages.markdown import to_markdown
from tdistill.pages.tables import Align, Cell, Table, format_estimate
from tdistill.runtime.errors import ConfigError, DataError, OutputError
from tdistill.runtime.files import write_json
from tdistill.runtime.forms import Form, Name, read_form
from tdistill.statistics.estimate import Estimate

RESULTS = "results.json"
# The parts of lm-eval's results that are kept; the rest describes the machine at length.
KEPT = ("results", "groups", "configs", "versions", "n-shot", "n-samples", "higher_is_better")


class LmEvalForm(Form):
    """Declare the form of ``results.json``."""

    system: Name
    results: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class LmEvalOptions:
    """Hold the options that the command line gives beside the recipe."""

    tasks: str  # names, groups, tags or patterns, separated by commas
    include_path: Path | None = None  # a directory of task YAMLs of one's own
    limit: int | None = None  # the first n documents of every task


class LmEvalRun:
    """Measure a recipe's systems on harness tasks. The constructor makes every check that needs no model.

    Raises:
        ConfigError: lm-eval is not installed, a task is unknown, or students are not trained yet.
        DataError: the directory of YAMLs is missing, or a task can't be loaded (its data may have to be downloaded).
    """

    def __init__(self, experiment: Experiment, options: LmEvalOptions):
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError("--lm-eval needs the package lm-eval: pip install 'tdistill[lm-eval]'")
        self.experiment, self.options = experiment, options
        self.harness: Any = importlib.import_module("lm_eval")
        if options.include_path is not None and not options.include_path.is_dir():
            raise DataError(f"--lm-eval-include-path {options.include_path} is no directory.")
        include = str(options.include_path) if options.include_path else None
        self.manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=include)
        self.names = matched(options.tasks, self.manager)
        require_students(experiment, "--lm-eval")
        try:
            self.manager.load(list(self.names))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"lm-eval can't load {', '.join(self.names)} ({type(error).__name__}: {error}). Its data may be out of reach."
            ) from error

    def artefact(self, system: System) -> Artefact:
        """Return a system's results."""
        settings = {
            "tasks": list(self.names),
            "include": content_of(self.options.include_path),
            "limit": self.options.limit,
            **computing(self.experiment),
            "lm_eval": self.harness.__version__,
        }
        inputs = {"system": system.artefact, "teacher": teacher(self.experiment)}  # whose tokenizer is used
        return Artefact(self.experiment.root, "lm_eval", f"lm-eval of {system.title}", settings, partial(self._make, system), inputs)

    def measure(self) -> dict[str, dict[str, Any]]:
        """Make the results that are missing, and return system → its results."""
        found = {system.title: self.artefact(system) for system in systems(self.experiment)}
        make_missing(self.experiment, list(found.values()))
        return {title: read_results(artefact.directory / RESULTS, title) for title, artefact in found.items()}

    def report(self) -> str:
        """Measure every system, and return a Markdown table with the place of the results."""
        table = lm_eval_table(self.measure())
        return f"{to_markdown(table)}\n\n{table.caption}\nresults: {self.experiment.root / 'lm_eval'}"

    def _make(self, system: System, directory: Path) -> dict[str, Any]:
        huggingface = importlib.import_module("lm_eval.models.huggingface")
        logging.getLogger(huggingface.__name__).setLevel(logging.ERROR)  # it warns of every model that is already in memory
        batch_size, tokenizer = self.experiment.recipe.evaluation.batch_size, load_own_tokenizer(self.experiment)
        model = huggingface.HFLM(pretrained=load_system(self.experiment, system), tokenizer=tokenizer, batch_size=batch_size)
        found = self.harness.simple_evaluate(
            model=model, tasks=list(self.names), task_manager=self.manager, limit=self.options.limit, log_samples=False
        )
        kept = {k: found[k] for k in KEPT if k in found}
        record = {
            "system": system.title,
            "method": system.name,
            "seed": system.seed,
            "description": system.description,
            **self.artefact(system).settings,
            "batch_size": batch_size,
            **json.loads(json.dumps(kept, default=str)),  # configurations may hold functions
            "provenance": provenance(self.experiment.recipe),
        }
        write_json(directory / RESULTS, record)
        return {"system": system.title}


def read_results(path: Path, system: str) -> dict[str, Any]:
    """Read a system's results, named as the recipe names it.

    Raises:
        OutputError: the file is missing or damaged.
    """
    return {**read_form(path, LmEvalForm, OutputError, advice(path)), "system": system}


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
