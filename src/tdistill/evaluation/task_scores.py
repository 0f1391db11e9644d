"""Score a system's answers to a task by prompt and by position, and read the scores back."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from tdistill.evaluation.answer_files import ScoresForm, advice, check_ranges
from tdistill.evaluation.answers import SCORED_AT_ONCE, Protocol, entropy_of, teacher_nll
from tdistill.evaluation.metrics import rouge_scorer
from tdistill.evaluation.tasks import TaskSpec, text_metrics
from tdistill.runtime.errors import DataError, OutputError
from tdistill.runtime.files import read_jsonl
from tdistill.runtime.forms import Count, Form, Name, Positive, check_form, read_form
from tdistill.runtime.progress import bar
from tdistill.statistics.estimate import Estimate, estimate

ROWS, RECORDS = "tasks.jsonl", "task_scores.jsonl"


class PositionsForm(Form):
    """Declare sums and counts of the teacher's NLL, one for each token index."""

    sum: list[float]
    count: list[Count]


class TaskScoresForm(Form):
    """Declare the form of the scores of one system on one task."""

    system: Name
    task: Name
    prompts: Positive
    scores: ScoresForm
    nll_by_position: PositionsForm


def score_answers(
    records: Sequence[dict[str, Any]], protocol: Protocol, spec: TaskSpec, load_teacher: Callable[[], PreTrainedModel], title: str
) -> dict[str, Any]:
    """Return ``scores`` (metric → prompt id → mean over its answers) and ``nll_by_position`` (sum and count of the teacher's NLL per token
    index).

    Teacher NLL includes the end-of-text token, so that stopping where the teacher would counts. A value that is undefined
    (distinct-2 of fewer than two words) is left out.
    """
    by_id, scorer, teacher = {p.prompt.prompt_id: p for p in protocol.prompts}, rouge_scorer(), load_teacher()
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    longest = protocol.sampling.max_completion_length
    sums, counts = np.zeros(longest), np.zeros(longest, dtype=np.int64)
    order = sorted(records, key=lambda r: (len(by_id[r["prompt_id"]].ids) + len(r["tokens"]), r["prompt_id"], r["sample_index"]))
    with bar(title, len(order), "answers") as progress:
        for start in range(0, len(order), SCORED_AT_ONCE):
            chunk = order[start : start + SCORED_AT_ONCE]
            scored = teacher_nll(teacher, [(by_id[r["prompt_id"]], r["tokens"]) for r in chunk], protocol.vocab_size)
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


def read_records(directory: Path) -> list[dict[str, Any]]:
    """Read the scores by prompt of every system and task that stand beside a ``tasks.jsonl``.

    Raises:
        DataError: there are none.
        OutputError: the file is damaged.
    """
    path = directory / RECORDS
    if not path.is_file():
        raise DataError(
            f"{directory} has no scores of tasks ({RECORDS}). Name the folder of a tasks.jsonl, output_dir/tasks/KEY, "
            "which `tdistill evaluate RECIPE --tasks NAMES` makes."
        )
    records: list[dict[str, Any]] = read_jsonl(path, OutputError, advice(path))
    check_form(records, list[TaskScoresForm], str(path), OutputError, advice(path))
    for record in records:
        _check_record(record, path)
    return records


def read_record(path: Path) -> dict[str, Any]:
    """Read the scores of one system on one task.

    Raises:
        OutputError: the file is missing or damaged.
    """
    record: dict[str, Any] = read_form(path, TaskScoresForm, OutputError, advice(path))
    _check_record(record, path)
    return record


def _check_record(record: dict[str, Any], path: Path) -> None:
    check_ranges(record["scores"], path)
    curve = record["nll_by_position"]
    if len(curve["sum"]) != len(curve["count"]):
        raise OutputError(f"{path}: `nll_by_position` has {len(curve['sum'])} sums and {len(curve['count'])} counts. {advice(path)}")


def read_task_scores(directory: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Read system → task → metric → prompt id → mean over generation seeds, from the folder of a ``tasks.jsonl``.

    A student of a recipe with several training seeds has its seed in its name, such as ``distilled, seed 18``.

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
