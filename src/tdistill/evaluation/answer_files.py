"""Write and read the answers and the scores of a system. What is read must be what was asked for."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from tdistill.evaluation.answers import Batch, Protocol
from tdistill.runtime.errors import OutputError
from tdistill.runtime.files import read_jsonl, write_jsonl
from tdistill.runtime.forms import Count, Form, Name, Number, check_form, read_form
from tdistill.runtime.progress import bar

ANSWERS, SCORES, JOURNAL = "answers.jsonl", "scores.json", "answers.batches"
ScoresForm = dict[str, dict[str, Number]]  # metric → prompt id → value
# metric → the least and the largest value that it can have; rounding of sums aside.
RANGES = {
    "rouge_l": (0.0, 100.0),
    "teacher_nll": (0.0, math.inf),
    "forward_kl": (0.0, math.inf),
    "reverse_kl": (0.0, math.inf),
    "student_mass": (0.0, 1.0),
    "entropy": (0.0, math.inf),
    "distinct_2": (0.0, 1.0),
    "mean_length": (1.0, math.inf),
}
ROUNDING = 1e-2


class AnswerForm(Form):
    """Declare the form of a line of ``answers.jsonl``."""

    prompt_id: Name
    sample_index: Count
    tokens: list[Count] = Field(min_length=1)
    finished: bool
    text: str
    own_logp: Number = 0.0


@dataclass(frozen=True)
class AnswerBounds:
    """Hold the bounds that every answer of a system must keep."""

    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    max_completion_length: int
    vocab_size: int

    @classmethod
    def of(cls, protocol: Protocol) -> "AnswerBounds":
        """Return the bounds of the answers that a protocol asks for."""
        return cls(protocol.tokenizer, protocol.eos_ids, protocol.sampling.max_completion_length, protocol.vocab_size)

    def problem(self, record: dict[str, Any]) -> str | None:
        """Return what is wrong with an answer, or None."""
        tokens = record["tokens"]
        if max(tokens) >= self.vocab_size:
            return f"token {max(tokens)} is beyond the vocabulary of {self.vocab_size}"
        if len(tokens) > self.max_completion_length:
            return f"{len(tokens)} tokens, and an answer has at most {self.max_completion_length}"
        if record["finished"] != (tokens[-1] in self.eos_ids):
            return "`finished` does not fit its last token"
        written = tokens[:-1] if record["finished"] else tokens  # the token that ends an answer is no part of its text
        if record["text"] != self.tokenizer.decode(written, skip_special_tokens=True):
            return "`text` is not what its tokens decode to"
        return None


def answer_all(
    directory: Path, plan: Sequence[Batch], answer: Callable[[Batch], list[dict[str, Any]]], bounds: AnswerBounds, title: str
) -> list[dict[str, Any]]:
    """Return all answers of a plan by prompt and sample, and write them to ``answers.jsonl``.

    Each batch is kept as soon as it is answered. A run that was stopped goes on at its first missing batch, and ends with the same
    answers if the plan is the same.

    Raises:
        OutputError: what an earlier run left is damaged, or answers something else.
    """
    path, journal = directory / ANSWERS, directory / JOURNAL
    if os.path.lexists(path):
        return read_answers(path, [pair for batch in plan for pair in _asked(batch)], bounds)
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
        raise OutputError(f"{journal} can't be read: {error.strerror}. {advice(journal)}") from error
    done = read_jsonl(journal, OutputError, advice(journal))
    if len(done) > len(plan):
        raise OutputError(f"{journal} holds {len(done)} batches, and there are {len(plan)}. {advice(journal)}")
    for records, batch in zip(done, plan, strict=False):
        check_answers(records, _asked(batch), bounds, journal)
    return done


def read_answers(path: Path, expected: Iterable[tuple[str, int]], bounds: AnswerBounds) -> list[dict[str, Any]]:
    """Read ``answers.jsonl``.

    Args:
        path: the file's path.
        expected: the (prompt id, sample index) of every answer that it must hold, in any order.
        bounds: what each must agree with.

    Raises:
        OutputError: a line is damaged, an answer is missing, stands twice or is to another prompt, or its text is not its tokens'.
    """
    records = read_jsonl(path, OutputError, advice(path))
    check_answers(records, expected, bounds, path)
    return records


def check_answers(records: Any, expected: Iterable[tuple[str, int]], bounds: AnswerBounds, path: Path) -> None:
    """Check answers that were read from ``path``; see ``read_answers``."""
    check_form(records, list[AnswerForm], str(path), OutputError, advice(path))
    found, wanted = Counter((r["prompt_id"], r["sample_index"]) for r in records), Counter(expected)
    if found != wanted:
        first = sorted((found - wanted) | (wanted - found))[0]
        raise OutputError(f"{path}: {found[first]} answers to {first}, where {wanted[first]} were asked for. {advice(path)}")
    for record in records:
        if problem := bounds.problem(record):
            raise OutputError(f"{path}: answer {record['sample_index']} to {record['prompt_id']}: {problem}. {advice(path)}")


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """Read a file of scores: metric → prompt id → value.

    Raises:
        OutputError: the file is missing or damaged, or a score lies outside its metric's range.
    """
    scores: dict[str, dict[str, float]] = read_form(path, ScoresForm, OutputError, advice(path))
    check_ranges(scores, path)
    return scores


def check_ranges(scores: dict[str, dict[str, float]], path: Path) -> None:
    """Raise ``OutputError`` where a score that was read from ``path`` lies outside its metric's range."""
    for metric, values in scores.items():
        least, most = RANGES.get(metric, (-math.inf, math.inf))
        wrong = next((p for p, v in values.items() if v < least - ROUNDING or v > most + ROUNDING), None)
        if wrong is not None:
            raise OutputError(f"{path}: {metric} of prompt {wrong} is {values[wrong]}, outside [{least:g}, {most:g}]. {advice(path)}")


def advice(path: Path) -> str:
    """Return what to do with a damaged file of a measurement."""
    return f"Delete {path.parent} and run again: it alone is made anew."
