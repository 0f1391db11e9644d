"""Read back what stages wrote: every file is checked for its form, and against the checksum that its stage noted when it was complete.

Files are written whole or not at all, but disks, other programs and people change them. A changed file is refused with what to
delete, and is never taken for what the stage made: a rerun makes what is missing anew.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tdistill.experiment.run_forms import NOTES, RANGES, ROUNDING, AnswerForm, StageForm
from tdistill.runtime.errors import OutputError
from tdistill.runtime.files import read_jsonl
from tdistill.runtime.forms import Form, check_form, read_form
from tdistill.runtime.hashes import hash_sampled

STAGE_FILE, FILES, CHECKSUM = "stage.json", "files", "checksum"
# Results, weights, and all that a tokenizer or a model's own code is made of; roll-outs' shards have checksums in the manifest beside them.
CHECKED = (".json", ".jsonl", ".safetensors", ".jinja", ".model", ".txt", ".py")
PAGE_STAGES = ("report", "sparsity")
UNCHECKED = ("checkpoints", "rollouts")  # folders that only a training run reads, while it runs


def checksums(directory: Path) -> dict[str, str]:
    """Return file → SHA-256 of the files of a stage that later stages read (of large weights: of a sample of their blocks)."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.suffix in CHECKED and path.is_file() and name.parts[-1] != STAGE_FILE and not set(name.parts) & set(UNCHECKED):
            found[str(name)] = _checksum(path)
    return found


def sealed(record: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return what ``stage.json`` holds: the record, the checksums of the stage's files, and one checksum of both."""
    whole = record | {FILES: checksums(directory)}
    return whole | {CHECKSUM: _digest(whole)}


def _digest(record: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # as it is read back: with lists for tuples, and text for keys
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    if path.suffix == ".safetensors":
        hash_sampled(digest, path)
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete(directory: Path) -> bool:
    """Return whether a stage has finished in a directory: its ``stage.json`` is there, whatever is in it."""
    return os.path.lexists(directory / STAGE_FILE)


def read_stage_file(directory: Path, copied: bool = False) -> dict[str, Any]:
    """Read ``stage.json`` of ``…/STAGE/KEY``, and check that the stage's files are those that it made.

    Args:
        directory: the stage's directory.
        copied: the directory may be a copy that lacks files which are not read, such as weights.

    Raises:
        OutputError: the file is damaged or another stage's, or a file of the stage is missing or was altered.
    """
    path, stage = directory / STAGE_FILE, directory.parent.name
    advice = f"Delete {path} and run again: {_KEPT.get(stage) or 'students that are done are kept.'}"
    if not is_complete(directory):
        raise OutputError(f"{path} is missing, so the stage {stage} is not complete: `tdistill run RECIPE` completes it.")
    record = read_form(path, StageForm, OutputError, advice)
    check_form(record["notes"], NOTES.get(stage, dict[str, Any]), f"{path}: `notes`", OutputError, advice)
    found = (record.get("stage", stage), record["key"])
    if found != (stage, directory.name):
        raise OutputError(f"{path} is that of {found[0]}/{found[1]}, not of {stage}/{directory.name}. {advice}")
    # Earlier versions noted neither.
    if (FILES in record or CHECKSUM in record) and _digest({k: v for k, v in record.items() if k != CHECKSUM}) != record.get(CHECKSUM):
        raise OutputError(f"{path} was altered or is damaged: it is not what the stage wrote. Put the right file back, or d{advice[1:]}")
    for name, checksum in record.get(FILES, {}).items():
        if Path(name).is_absolute() or ".." in Path(name).parts or Path(name).suffix not in CHECKED:
            raise OutputError(f"{path}: `{FILES}` names {name!r:.80}, which is no file of the stage. {advice}")
        if not (copied and not os.path.lexists(directory / name)):
            _check_file(directory / name, checksum)
    if stage in PAGE_STAGES and not copied:
        for name in ("markdown", "page"):  # people may write on a page, so it must only be there
            if not (directory / record["notes"][name]).is_file():
                raise OutputError(f"{directory / record['notes'][name]} is missing. {advice}")
    return record


def _check_file(path: Path, checksum: str) -> None:
    problem = "is missing"
    try:
        if path.is_file():
            problem = "" if _checksum(path) == checksum else "was altered or is damaged: it is not what the stage wrote"
    except OSError as error:
        problem = f"can't be read ({error.strerror})"
    if problem:
        raise OutputError(f"{path} {problem}. Put the right file back, or {remedy(path)}")


def remedy(path: Path) -> str:
    """Return what to delete so that a rerun makes a stage's file anew and keeps as much of the rest as it can.

    ``path`` is ``…/STAGE/KEY/…`` of a stage, or lies below ``temperatures``, ``tasks`` or ``lm_eval``.
    """
    parts = path.parts
    place = max((i for i, part in enumerate(parts[:-2]) if part in _KEPT), default=None)
    if place is None:
        return f"delete {path} and run again."
    stage, directory, rest = parts[place], Path(*parts[: place + 2]), parts[place + 2 :]
    mark = directory / STAGE_FILE
    if stage == "train":
        return f"delete {directory / rest[0]} and {mark}, and run again: that student alone is trained again."
    if stage == "evaluate":
        scores = [directory / "scores" / f"{path.stem}.json"] if rest[0] == "answers" else []
        return f"delete {', '.join(map(str, [path, *scores]))} and {mark}, and run again: {_KEPT[stage]}"
    if stage == "rollout":
        return f"delete {path} and {mark}, and run again: {_KEPT[stage]}"
    if stage in ("temperatures", "tasks", "lm_eval"):
        return f"delete {path} and run the same command again: {_KEPT[stage]}"
    return f"delete {directory} and run again: {_KEPT[stage]}"


_KEPT = {
    "models": "the stage is made anew, and later stages are kept.",
    "rollout": "whole shards are kept.",
    "sft": "the student is trained again.",
    "train": "",
    "evaluate": "what else is measured is kept.",
    "report": "the pages are made anew.",
    "sparsity": "the pages are made anew.",
    "temperatures": "what else is measured is kept.",
    "tasks": "what else is measured is kept.",
    "lm_eval": "what else is measured is kept.",
}


def read_run_file(path: Path, form: Any) -> Any:
    """Read a JSON file of a stage and check its form.

    Raises:
        OutputError: missing, damaged or of another form; the message says what to delete.
    """
    return read_form(path, form, OutputError, advice_for(path))


def advice_for(path: Path) -> str:
    """Return ``remedy`` as a sentence."""
    words = remedy(path)
    return words[0].upper() + words[1:]


def read_scores_file(path: Path, form: type[Form], **expected: Any) -> dict[str, Any]:
    """Read a file of scores, whose keys named in ``expected`` must have these values.

    Raises:
        OutputError: see ``read_run_file``; or it is another system's, or a score lies outside its metric's range.
    """
    found = read_run_file(path, form)
    for key, value in expected.items():
        if found[key] != value:
            raise OutputError(f"{path} holds the scores of {key}={found[key]!r}, not of {value!r}. {advice_for(path)}")
    for metric, values in found["scores"].items():
        least, most = RANGES.get(metric, (-math.inf, math.inf))
        wrong = next((p for p, v in values.items() if v < least - ROUNDING or v > most + ROUNDING), None)
        if wrong is not None:
            raise OutputError(f"{path}: {metric} of prompt {wrong} is {values[wrong]}, outside [{least:g}, {most:g}]. {advice_for(path)}")
    return found


@dataclass(frozen=True)
class AnswerBounds:
    """Hold the bounds that every answer of a system must keep."""

    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    max_completion_length: int
    vocab_size: int

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


def read_answer_lines(path: Path, expected: Iterable[tuple[str, int]], bounds: AnswerBounds) -> list[dict[str, Any]]:
    """Read ``answers/NAME.jsonl``.

    Args:
        path: the file's path.
        expected: the (prompt id, sample index) of every answer that it must hold, in any order.
        bounds: what each must agree with.

    Raises:
        OutputError: a line is damaged, an answer is missing, stands twice or is to another prompt, or its text is not its tokens'.
    """
    records = read_jsonl(path, OutputError, advice_for(path))
    check_answers(records, expected, bounds, path)
    return records


def check_answers(records: Any, expected: Iterable[tuple[str, int]], bounds: AnswerBounds, path: Path) -> None:
    """Check answers that were read from ``path``; see ``read_answer_lines``."""
    advice = advice_for(path)
    check_form(records, list[AnswerForm], str(path), OutputError, advice)
    found, wanted = Counter((r["prompt_id"], r["sample_index"]) for r in records), Counter(expected)
    if found != wanted:
        first = sorted((found - wanted) | (wanted - found))[0]
        raise OutputError(f"{path}: {found[first]} answers to {first}, where {wanted[first]} were asked for. {advice}")
    for record in records:
        if problem := bounds.problem(record):
            raise OutputError(f"{path}: answer {record['sample_index']} to {record['prompt_id']}: {problem}. {advice}")
