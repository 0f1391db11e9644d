"""Summarise a system's answers to a task: by prompt, by position, as a row and as a table."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.evaluation.answers import entropy_of
from tdistill.evaluation.metrics import rouge_scorer
from tdistill.evaluation.tasks import TaskSpec, text_metrics
from tdistill.experiment.evaluation import SCORED_AT_ONCE
from tdistill.experiment.run_files import AnswerBounds, advice_for, check_answers, read_answer_lines, read_scores_file
from tdistill.experiment.run_forms import TaskScoresForm
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.pages.tables import ARROWS, Align, Cell, Table, format_estimate
from tdistill.runtime.errors import DataError, OutputError
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.progress import bar
from tdistill.statistics.estimate import Estimate, estimate

SCORES = "scores"
# metric → (title, which direction is better)
TASK_METRICS: dict[str, tuple[str, str]] = {
    "rouge_l": ("ROUGE-L", "higher"),
    "exact_match": ("exact match", "higher"),
    "number_match": ("last number", "higher"),
    "teacher_nll": ("teacher NLL", "lower"),
    "entropy": ("entropy", ""),
    "distinct_2": ("distinct-2", ""),
    "mean_length": ("length", ""),
    "finished": ("finished", ""),
}

Batch = Sequence[tuple[TokenizedPrompt, int]]
Answer = Callable[[Batch], list[dict[str, Any]]]


def answer_all(path: Path, plan: Sequence[Batch], answer: Answer, bounds: AnswerBounds, title: str) -> list[dict[str, Any]]:
    """Return answers by prompt and sample, from ``path`` if it is there; else of all batches of a plan, each kept as soon as it is there.

    A run that was stopped goes on at its first missing batch, and, the plan being the same, ends with the same answers.

    Raises:
        OutputError: what an earlier run left is damaged, or answers something else.
    """
    if os.path.lexists(path):
        return read_answer_lines(path, [pair for batch in plan for pair in _asked(batch)], bounds)
    journal = path.with_suffix(".batches")
    done = _whole_batches(journal, plan, bounds)
    with bar(title, sum(map(len, plan)), "answers", done=sum(map(len, done))) as progress, journal.open("ab") as handle:
        for batch in plan[len(done) :]:
            done.append(answer(batch))
            handle.write(json.dumps(done[-1]).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
            progress.advance(len(batch))
    records = sorted((r for batch in done for r in batch), key=lambda r: (r["prompt_id"], r["sample_index"]))
    write_jsonl(path, records)
    journal.unlink()
    return records


def _asked(batch: Batch) -> list[tuple[str, int]]:
    return [(prompt.prompt.prompt_id, sample) for prompt, sample in batch]


def _whole_batches(journal: Path, plan: Sequence[Batch], bounds: AnswerBounds) -> list[list[dict[str, Any]]]:
    if not os.path.lexists(journal):
        return []
    try:
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1  # a kill may have left a part of the last line
        if whole < len(content):
            os.truncate(journal, whole)
    except OSError as error:
        raise OutputError(f"{journal} can't be read: {error.strerror}. {advice_for(journal)}") from error
    done = read_jsonl(journal, OutputError, advice_for(journal))
    if len(done) > len(plan):
        raise OutputError(f"{journal} holds {len(done)} batches, and there are {len(plan)}. {advice_for(journal)}")
    for records, batch in zip(done, plan, strict=False):
        check_answers(records, _asked(batch), bounds, journal)
    return done


def score_answers(
    records: Sequence[dict[str, Any]],
    prompts: Sequence[TokenizedPrompt],
    spec: TaskSpec,
    teacher: PreTrainedModel,
    vocab_size: int,
    max_completion_length: int,
    title: str,
) -> dict[str, Any]:
    """Return ``scores`` (metric → prompt id → mean over its answers) and ``nll_by_position`` (sum and count of the teacher's NLL per token
    index).

    Teacher NLL includes the end-of-text token, so that stopping where the teacher would counts. A value that is undefined
    (distinct-2 of fewer than two words) is left out.
    """
    by_id, scorer = {p.prompt.prompt_id: p for p in prompts}, rouge_scorer()
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    sums, counts = np.zeros(max_completion_length), np.zeros(max_completion_length, dtype=np.int64)
    order = sorted(records, key=lambda r: (len(by_id[r["prompt_id"]].ids) + len(r["tokens"]), r["prompt_id"], r["sample_index"]))
    with bar(title, len(order), "answers") as progress:
        for start in range(0, len(order), SCORED_AT_ONCE):
            chunk = order[start : start + SCORED_AT_ONCE]
            scored = teacher_nll(teacher, [(by_id[r["prompt_id"]], r["tokens"]) for r in chunk], vocab_size)
            for record, nll in zip(chunk, scored, strict=True):
                sums[: len(nll)] += nll
                counts[: len(nll)] += 1
                own = text_metrics(spec, record["text"], by_id[record["prompt_id"]].prompt.references, scorer)
                own |= {"teacher_nll": float(nll.mean()), "mean_length": float(len(nll)), "finished": float(record["finished"])}
                entropy = entropy_of(record)
                own |= {} if entropy is None else {"entropy": entropy}
                for name, value in own.items():
                    if not math.isnan(value):
                        values[name][record["prompt_id"]].append(value)
            progress.advance(len(chunk))
    means = {name: {pid: sum(v) / len(v) for pid, v in of_prompts.items()} for name, of_prompts in values.items()}
    return {"scores": means, "nll_by_position": {"sum": sums.tolist(), "count": counts.tolist()}}


@torch.inference_mode()
def teacher_nll(teacher: PreTrainedModel, batch: Sequence[tuple[TokenizedPrompt, Sequence[int]]], vocab_size: int) -> list[np.ndarray]:
    """Return −log π* of every token of the given (prompt, response ids), one float64 array for each response."""
    padded = pad_pairs([p.ids for p, _ in batch], [r for _, r in batch])
    inputs, attention, taken, _ = (x.to(teacher.device) for x in padded)
    logp = step_logp(teacher, inputs, attention, taken.shape[1], vocab_size).gather(-1, taken.unsqueeze(-1)).squeeze(-1)
    values = -logp.double().cpu().numpy()
    return [row[: len(response)] for row, (_, response) in zip(values, batch, strict=True)]


def read_records(directory: Path) -> list[dict[str, Any]]:
    """Read every system × task that was measured in the folder of a ``tasks.jsonl``.

    Raises:
        DataError: there is none.
        OutputError: one is damaged, or that of another system or task.
    """
    found = [read_record(path) for path in sorted(directory.glob(f"*/{SCORES}/*.json"))]
    if not found:
        raise DataError(
            f"{directory} has no scores of tasks (TASK/{SCORES}/SYSTEM.json). Name the folder of a tasks.jsonl, output_dir/tasks/KEY, "
            "which `tdistill evaluate RECIPE --tasks NAMES` makes."
        )
    return found


def read_record(path: Path) -> dict[str, Any]:
    """Read the scores of one system on one task, ``TASK/scores/SYSTEM.json``.

    Raises:
        OutputError: the file is damaged, or that of another system or task.
    """
    record = read_scores_file(path, TaskScoresForm, system=path.stem, task=path.parents[1].name)
    curve = record["nll_by_position"]
    if len(curve["sum"]) != len(curve["count"]):
        raise OutputError(f"{path}: `nll_by_position` has {len(curve['sum'])} sums and {len(curve['count'])} counts. {advice_for(path)}")
    return record


def read_task_scores(directory: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Read system → task → metric → prompt id → mean over generation seeds.

    Raises:
        DataError: see ``read_records``.
    """
    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for record in read_records(directory):
        scores.setdefault(record["system"], {})[record["task"]] = record["scores"]
    return scores


def read_nll_by_position(directory: Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Read system → task → (sums, counts) of the teacher's NLL by the token's index in its answer.

    Raises:
        DataError: see ``read_records``.
    """
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for record in read_records(directory):
        own = record["nll_by_position"]
        curves.setdefault(record["system"], {})[record["task"]] = (np.array(own["sum"]), np.array(own["count"]))
    return curves


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its values replaced by their mean, standard error over prompts (null for one prompt) and n."""
    row = {k: v for k, v in record.items() if k not in ("scores", "nll_by_position")}
    return row | {"metrics": {name: _plain(estimate(list(v.values()))) for name, v in record["scores"].items()}}


def _plain(value: Estimate) -> dict[str, Any]:
    return {"mean": value.mean, "stderr": None if math.isnan(value.stderr) else value.stderr, "n": value.n}


def tasks_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Build a table with one line for each system × task, and the metrics that any of them has."""
    metrics = [m for m in TASK_METRICS if any(m in row["metrics"] for row in rows)]
    header = ["task", "system", "prompts", *(TASK_METRICS[m][0] + ARROWS[TASK_METRICS[m][1]] for m in metrics)]
    lines = [
        [Cell(r["task"]), Cell(r["system"]), Cell(str(r["prompts"])), *(Cell(_format(r["metrics"].get(m))) for m in metrics)] for r in rows
    ]
    align: list[Align] = ["right"] * len(header)
    align[:2] = ["left", "left"]
    return Table("Mean over prompts ± standard error; each prompt's value is the mean of its answers.", header, lines, align)


def _format(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return format_estimate(None)
    return format_estimate(Estimate(metric["mean"], math.nan if metric["stderr"] is None else metric["stderr"], metric["n"]))
