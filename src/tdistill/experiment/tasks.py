"""Measure every system of a run on named tasks. What is already measured is kept."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.data.overlap import load_split, shared_prompts
from tdistill.data.prompts import TokenizedPrompt
from tdistill.evaluation.answers import EVALUATION_SEED_OFFSET, answer_record
from tdistill.evaluation.task_scores import SCORES, Batch, answer_all, read_record, read_records, row_of, score_answers, tasks_table
from tdistill.evaluation.tasks import SUBSET_SEED, Task, choose_prompts, load_task, task_names
from tdistill.experiment.context import check_fits
from tdistill.experiment.evaluation import ANSWERS, EvaluatedSystem
from tdistill.experiment.models import load_teacher, models_info, student_tokenizer, vocab_size
from tdistill.experiment.pipeline import Run, disk_errors, provenance
from tdistill.experiment.rollouts import model_configs
from tdistill.experiment.run_files import AnswerBounds, read_run_file
from tdistill.experiment.run_forms import TaskDataForm
from tdistill.experiment.systems import systems
from tdistill.models.vocabulary import Vocabulary
from tdistill.pages.markdown import to_markdown
from tdistill.recipe.schema import Sampling
from tdistill.runtime.errors import ConfigError, DataError
from tdistill.runtime.files import write_json, write_jsonl
from tdistill.runtime.processes import process_count
from tdistill.runtime.progress import say
from tdistill.teachers.rollouts import batch_plan
from tdistill.teachers.transformers import generate_batch

TASKS_DIRECTORY, ROWS, DATA = "tasks", "tasks.jsonl", "data.json"
KEY_LENGTH = 12  # hex digits, as the stages' keys have


@dataclass(frozen=True)
class TaskOptions:
    """Hold the options that the command line gives beside the recipe."""

    tasks: str  # names, separated by commas
    data_dir: Path | None
    seeds: int = 5  # answers per prompt
    limit: int | None = None  # prompts per task
    max_prompt_length: int | None = None  # tokens; by default the recipe's


class TaskRun:
    """Measure a run's systems on tasks. The constructor makes every check that needs no model.

    ``others``, which lie in ``place``, are measured by the run's protocol in place of its own systems.

    Raises:
        ConfigError: no data directory, a task that is unknown, students not trained yet, or several processes.
        DataError: see ``load_task`` and ``choose_prompts``; or prompts and answers do not fit the context, or the tasks' folder
            has answers to other prompts.
    """

    def __init__(self, run: Run, options: TaskOptions, others: Sequence[EvaluatedSystem] = (), place: Path | None = None):
        self.run, self.options, self.others, self.place = run, options, others, place
        self.tasks = [load_task(name, options.data_dir) for name in task_names(options.tasks)]
        if not others:
            require_students(run, "--tasks")
        self.tokenizer: PreTrainedTokenizerBase = student_tokenizer(run)
        self.prompts: dict[str, list[TokenizedPrompt]] = {}
        self.skipped: dict[str, int] = {}
        for task in self.tasks:
            chosen = choose_prompts(task, self.tokenizer, self.max_prompt_length, run.recipe.data.overlong, options.limit)
            self.prompts[task.name], self.skipped[task.name] = chosen
            self._check(task)

    @property
    def max_prompt_length(self) -> int:
        """Return the longest prompt allowed, in tokens, template included."""
        return self.options.max_prompt_length or self.run.recipe.data.max_prompt_length

    @property
    def sampling(self) -> Sampling:
        """Return how answers are sampled: in the same way as those to the recipe's own test prompts. Generation seed i is the sample index i of
        the noise.
        """
        c = self.run.recipe.evaluation
        length = c.max_completion_length or self.run.recipe.rollout.max_completion_length
        return Sampling(
            temperature=c.temperature,
            top_p=c.top_p,
            top_k=c.top_k,
            max_completion_length=length,
            seed=(self.run.recipe.seed + EVALUATION_SEED_OFFSET) % 2**32,
        )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings that change a number, apart from the task's file."""
        c, limit = self.run.recipe.evaluation, self.options.limit
        return {
            "sampling": self.sampling.model_dump(),
            "seeds": self.options.seeds,
            "limit": limit,
            "subset_seed": None if limit is None else SUBSET_SEED,
            "max_prompt_length": self.max_prompt_length,
            "dtype": c.dtype,
            "batch_size": c.batch_size,
        }

    @cached_property
    def directory(self) -> Path:
        """Return ``output_dir/tasks/KEY``, or ``tasks/KEY`` in the directory of other systems."""
        return keyed_directory(self.place or self.run.root, self.run, TASKS_DIRECTORY, self.settings)

    @cached_property
    def systems(self) -> Sequence[EvaluatedSystem]:
        """Return the systems to measure, in the table's order."""
        return self.others or systems(self.run)

    def measure(self) -> list[dict[str, Any]]:
        """Answer and score what is missing, write ``tasks.jsonl``, and return the rows of the tasks asked for."""
        for task in self.tasks:
            say(self._describe(task))
        load = cache(partial(load_teacher, self.run, self.run.recipe.evaluation.dtype))
        with disk_errors(self.directory):
            for task in self.tasks:
                for kind in (ANSWERS, SCORES):
                    (self.directory / task.name / kind).mkdir(parents=True, exist_ok=True)
                write_json(self.directory / task.name / DATA, {"file": task.file, "sha256": task.sha256})
            for system in self.systems:
                self._measure(system, load)
            rows = [row_of(record) for record in self.records()]
            write_jsonl(self.directory / ROWS, rows)
        return [row for task in self.tasks for row in rows if row["task"] == task.name]

    def records(self) -> list[dict[str, Any]]:
        """Return the scores by prompt of every task measured in this directory, for the systems asked for."""
        order = {s.name: i for i, s in enumerate(self.systems)}
        found = (r for r in read_records(self.directory) if r["system"] in order)
        return sorted(found, key=lambda r: (r["task"], order[r["system"]]))

    def report(self) -> str:
        """Measure, and say what came out: a Markdown table and where the rows are."""
        table = tasks_table(self.measure())
        return f"{to_markdown(table)}\n\n{table.caption}\nrows: {self.directory / ROWS}"

    def _check(self, task: Task) -> None:
        path = self.directory / task.name / DATA
        if os.path.lexists(path) and (stored := read_run_file(path, TaskDataForm)["sha256"]) != task.sha256:
            raise DataError(
                f"{path.parent} has answers to another file of task {task.name!r} (SHA-256 {stored[:KEY_LENGTH]}…, {task.file} has "
                f"{task.sha256[:KEY_LENGTH]}…). Give the first file, use another output_dir, or delete that folder."
            )
        wanted = max(len(p.ids) for p in self.prompts[task.name]) + self.sampling.max_completion_length
        option = f"Task {task.name!r}: its longest prompt + an answer (--max-prompt-length, evaluation.max_completion_length)"
        check_fits(wanted, option, model_configs(self.run))

    @cached_property
    def also_in_train(self) -> dict[str, int]:
        """Count, per task, the prompts that the students were trained on."""
        train = load_split(self.run.recipe.data, "train")
        return {name: len(shared_prompts((p.prompt for p in prompts), train)) for name, prompts in self.prompts.items()}

    def _describe(self, task: Task) -> str:
        n, skipped, bare = len(self.prompts[task.name]), self.skipped[task.name], task.without_reference
        notes = [f"{skipped} over {self.max_prompt_length} tokens skipped"] if skipped else []
        trained_on = self.also_in_train[task.name]
        notes += [f"{trained_on} of these prompts are also in train, which the students learnt from"] if trained_on else []
        notes += [f"{bare} without an answer to compare with, left out of the metrics that need one"] if bare else []
        return f"{task.name}: {n} of {len(task.prompts)} prompts, {self.options.seeds} answers each" + "".join(f"; {x}" for x in notes)

    def _measure(self, system: EvaluatedSystem, teacher: Callable[[], PreTrainedModel]) -> None:
        """Measure one system on every task that has no scores of it yet. Its model is loaded once, and only if it has to answer."""
        load = teacher if system.name == "teacher" else cache(system.load)
        eos_ids, batch_size = models_info(self.run)["eos_ids"], self.run.recipe.evaluation.batch_size
        for task in self.tasks:
            folder, name = self.directory / task.name, system.name
            if os.path.lexists(folder / SCORES / f"{name}.json"):
                read_record(folder / SCORES / f"{name}.json")
                continue
            prompts = self.prompts[task.name]
            plan = batch_plan([(p, i) for p in prompts for i in range(self.options.seeds)], batch_size)
            path = folder / ANSWERS / f"{name}.jsonl"
            title = f"{name}, {task.name}"
            length, vocab = self.sampling.max_completion_length, vocab_size(self.run)
            answer = partial(_answers, load, self.tokenizer, self.sampling, eos_ids, vocab)
            records = answer_all(path, plan, answer, AnswerBounds(self.tokenizer, eos_ids, length, vocab), f"{title}: answers")
            scored = score_answers(records, prompts, task.spec, teacher(), vocab, length, f"{title}: scores")
            about = {
                "system": name,
                "description": system.description,
                "task": task.name,
                "data": {"file": task.file, "sha256": task.sha256, "licence": task.spec.licence},
                "prompts": len(prompts),
                "skipped_overlong": self.skipped[task.name],
                "also_in_train": self.also_in_train[task.name],
                "without_reference": sum(not p.prompt.references for p in prompts),
                **self.settings,
                "provenance": provenance(self.run.recipe),
            }
            write_json(folder / SCORES / f"{name}.json", about | scored)


def require_students(run: Run, option: str) -> None:
    """Raise ``ConfigError`` unless the run's students are trained and this is the only process."""
    if process_count() > 1:
        raise ConfigError(f"`evaluate {option}` runs in one process, and this is one of {process_count()}: start it without a launcher.")
    for stage in ("models", "train"):
        if not run.is_complete(stage):
            raise ConfigError(f"`evaluate {option}` reads what `{stage}` makes, which is not complete: `tdistill run RECIPE` first.")


def keyed_directory(root: Path, run: Run, kind: str, settings: dict[str, Any]) -> Path:
    """Return ``ROOT/KIND/KEY``, with KEY a hash of the settings and of all that shaped the students."""
    content = json.dumps({"train": run.key("train"), "settings": settings}, sort_keys=True)
    return root / kind / hashlib.sha256(content.encode()).hexdigest()[:KEY_LENGTH]


def _answers(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    eos_ids: Sequence[int],
    vocab: int,
    batch: Batch,
) -> list[dict[str, Any]]:
    rows = generate_batch(load(), batch, sampling, Vocabulary(vocab, eos_ids))
    return [answer_record(row, tokenizer) for row in rows]
