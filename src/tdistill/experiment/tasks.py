"""Measure every system on named tasks. One system on one task is one artefact; a collection of them holds their rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tdistill.data.overlap import shared_prompts
from tdistill.data.prompts import TokenizedPrompt
from tdistill.evaluation.answer_files import SCORES, AnswerBounds, answer_all
from tdistill.evaluation.answers import Protocol
from tdistill.evaluation.task_scores import RECORDS, ROWS, read_record, row_of, score_answers
from tdistill.evaluation.tasks import SUBSET_SEED, Task, choose_prompts, load_task, task_names
from tdistill.experiment.answers import sampling_of
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.context import check_fits
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.models import computing, load_own_tokenizer, teacher, teacher_notes, vocab_size
from tdistill.experiment.on_demand import make_missing, require_students
from tdistill.experiment.provenance import provenance
from tdistill.experiment.rollouts import model_configs
from tdistill.experiment.systems import System, load_own_teacher, load_system, systems
from tdistill.experiment.task_table import tasks_table
from tdistill.pages.markdown import to_markdown
from tdistill.runtime.files import write_json, write_jsonl
from tdistill.runtime.progress import say

TASKS_KIND, ANSWERED_KIND = "tasks", "task_answers"


@dataclass(frozen=True)
class TaskOptions:
    """Hold the options that the command line gives beside the recipe."""

    tasks: str  # names, separated by commas
    data_dir: Path | None
    seeds: int = 5  # answers per prompt
    limit: int | None = None  # prompts per task
    max_prompt_length: int | None = None  # tokens; by default the recipe's


class TaskRun:
    """Measure a recipe's systems on tasks. The constructor makes every check that needs no model.

    Raises:
        ConfigError: no data directory, a task that is unknown, students not trained yet, or several processes.
        DataError: see ``load_task`` and ``choose_prompts``; or prompts and answers do not fit the context.
    """

    def __init__(self, experiment: Experiment, options: TaskOptions):
        self.experiment, self.options = experiment, options
        self.tasks = [load_task(name, options.data_dir) for name in task_names(options.tasks)]
        require_students(experiment, "--tasks")
        self.sampling = sampling_of(experiment)
        self.max_prompt_length = options.max_prompt_length or experiment.recipe.data.max_prompt_length
        self.prompts: dict[str, list[TokenizedPrompt]] = {}
        self.skipped: dict[str, int] = {}
        tokenizer, overlong = load_own_tokenizer(experiment), experiment.recipe.data.overlong
        for task in self.tasks:
            chosen = choose_prompts(task, tokenizer, self.max_prompt_length, overlong, options.limit)
            self.prompts[task.name], self.skipped[task.name] = chosen
            self._check(task)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings that change a number, apart from the task's file."""
        limit = self.options.limit
        return {
            "sampling": self.sampling.model_dump(),
            "seeds": self.options.seeds,
            "limit": limit,
            "subset_seed": None if limit is None else SUBSET_SEED,
            "max_prompt_length": self.max_prompt_length,
            **computing(self.experiment),
        }

    def artefact(self, task: Task, system: System) -> Artefact:
        """Return the answers of one system to one task, with their scores."""
        settings = {
            **self.settings,
            "task": task.name,
            "sha256": task.sha256,
            "vocab_size": vocab_size(self.experiment),
            "template": teacher_notes(self.experiment)["template"],
        }
        inputs = {"system": system.artefact, "teacher": teacher(self.experiment)}
        make = partial(self._make, task, system)
        return Artefact(self.experiment.root, ANSWERED_KIND, f"{task.name} by {system.title}", settings, make, inputs)

    def artefacts(self) -> list[Artefact]:
        """Return the answers of every system to every task, system by system, so that each model is loaded once."""
        return [self.artefact(task, system) for system in systems(self.experiment) for task in self.tasks]

    def collection(self) -> Artefact:
        """Return the rows and the scores by prompt of all systems and tasks asked for."""
        found = {f"{task.name} by {system.title}": self.artefact(task, system) for system in systems(self.experiment) for task in self.tasks}
        return Artefact(self.experiment.root, TASKS_KIND, "tasks", self.settings, self._collect, found)

    def measure(self) -> list[dict[str, Any]]:
        """Make what is missing, and return the records of all systems, task by task in the order asked for: a row of ``tasks.jsonl`` has their
        values' means.
        """
        for task in self.tasks:
            say(self._describe(task))
        make_missing(self.experiment, self.artefacts())
        make_missing(self.experiment, [self.collection()])
        return [self._record(task, system) for task in self.tasks for system in systems(self.experiment)]

    def report(self) -> str:
        """Measure every system, and return a Markdown table with the place of the rows."""
        table = tasks_table(self.measure())
        return f"{to_markdown(table)}\n\n{table.caption}\nrows: {self.collection().directory / ROWS}"

    def _check(self, task: Task) -> None:
        wanted = max(len(p.ids) for p in self.prompts[task.name]) + self.sampling.max_completion_length
        option = f"Task {task.name!r}: its longest prompt + an answer (--max-prompt-length, evaluation.max_completion_length)"
        check_fits(wanted, option, model_configs(self.experiment))

    @cached_property
    def also_in_train(self) -> dict[str, int]:
        """Return how many prompts of each task the students were trained on."""
        train = self.experiment.prompts("train")
        return {name: len(shared_prompts((p.prompt for p in prompts), train)) for name, prompts in self.prompts.items()}

    def _describe(self, task: Task) -> str:
        n, skipped, bare = len(self.prompts[task.name]), self.skipped[task.name], task.without_reference
        notes = [f"{skipped} over {self.max_prompt_length} tokens skipped"] if skipped else []
        trained_on = self.also_in_train[task.name]
        notes += [f"{trained_on} of these prompts are also in train, which the students learnt from"] if trained_on else []
        notes += [f"{bare} without an answer to compare with, left out of the metrics that need one"] if bare else []
        return f"{task.name}: {n} of {len(task.prompts)} prompts, {self.options.seeds} answers each" + "".join(f"; {x}" for x in notes)

    def _make(self, task: Task, system: System, directory: Path) -> Mapping[str, Any]:
        experiment, prompts, title = self.experiment, self.prompts[task.name], f"{system.title}, {task.name}"
        ids = (teacher_notes(experiment)["eos_ids"], vocab_size(experiment))
        asked = Protocol(prompts, self.sampling, self.options.seeds, load_own_tokenizer(experiment), *ids)
        plan = asked.plan(experiment.recipe.evaluation.batch_size)
        bounds = AnswerBounds.of(asked)
        records = answer_all(directory, plan, lambda batch: asked.answer(load_system(experiment, system), batch), bounds, f"{title}: answers")
        scored = score_answers(records, asked, task.spec, partial(load_own_teacher, experiment), f"{title}: scores")
        about = {
            "system": system.title,
            "method": system.name,
            "seed": system.seed,
            "description": system.description,
            "task": task.name,
            "data": {"file": task.file, "sha256": task.sha256, "licence": task.spec.licence},
            "prompts": len(prompts),
            "skipped_overlong": self.skipped[task.name],
            "also_in_train": self.also_in_train[task.name],
            "without_reference": sum(not p.prompt.references for p in prompts),
            **self.settings,
            "batch_size": experiment.recipe.evaluation.batch_size,
            "provenance": provenance(experiment.recipe),
        }
        write_json(directory / SCORES, about | scored)
        source = str(self.options.data_dir / task.file) if self.options.data_dir else task.file
        return {"system": system.title, "prompts": source, "answers": len(records)}

    def _collect(self, directory: Path) -> Mapping[str, Any]:
        every = systems(self.experiment)
        records = [self._record(task, system) for task in sorted(self.tasks, key=lambda t: t.name) for system in every]
        write_jsonl(directory / RECORDS, records)
        write_jsonl(directory / ROWS, [row_of(record) for record in records])
        return {"rows": len(records)}

    def _record(self, task: Task, system: System) -> dict[str, Any]:
        """Read the scores of one system on one task, under the name that it has in this recipe."""
        return {**read_record(self.artefact(task, system).directory / SCORES), "system": system.title}
