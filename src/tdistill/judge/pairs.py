"""Join two systems' answers to the same prompts, and make the questions to a judge."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tdistill.data.prompts import Prompt, load_prompts
from tdistill.runtime.errors import DataError
from tdistill.runtime.files import read_json
from tdistill.runtime.forms import check_form
from tdistill.runtime.parse import parse_json

Order = Literal["AB", "BA"]
ORDERS: tuple[Order, ...] = ("AB", "BA")  # which system's answer the judge sees first
MANIFEST = "artefact.json"  # beside the answers; importing it from tdistill.experiment would load torch
KEY_LENGTH = 32  # hex digits


@dataclass(frozen=True)
class Answers:
    """Hold one system's answers: (prompt id, sample index) → text."""

    path: Path
    texts: dict[tuple[str, int], str]
    notes: Mapping[str, Any]  # of the manifest beside them; empty if there is none

    @property
    def name(self) -> str:
        """Return the system's name: that in the manifest beside the answers, else the file's."""
        return str(self.notes.get("system", self.path.stem))

    @cached_property
    def prompt_ids(self) -> set[str]:
        """Return the ids of the prompts that have at least one answer."""
        return {prompt_id for prompt_id, _ in self.texts}


@dataclass(frozen=True)
class Pair:
    """Hold two answers to one request."""

    prompt_id: str
    sample_index: int
    request: str
    a: str
    b: str


@dataclass(frozen=True)
class Joined:
    """Hold the pairs of answers, and count the answers without a partner."""

    pairs: list[Pair]
    prompts: int
    left_out: dict[str, int]  # counts of what is not judged, by reason


@dataclass(frozen=True)
class Question:
    """Hold one pair in one order, as the judge reads it. ``key`` depends on the model and on all that it reads, and on the order."""

    key: str
    prompt_id: str
    sample_index: int
    order: Order
    content: str


def read_json_lines(path: Path, columns: Sequence[str], content: bytes | None = None) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, or of its ``content`` if given. Each object has all of ``columns``.

    Raises:
        DataError: the file can't be read, or a line is not an object with these columns; the line is named.
    """
    try:
        lines = (path.read_bytes() if content is None else content).split(b"\n")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}", DataError)
        missing = [c for c in columns if c not in row] if isinstance(row, dict) else list(columns)
        if missing:
            raise DataError(f"{path}, line {number}: expected an object with {', '.join(columns)}; {', '.join(missing)} missing.")
        rows.append(row)
    return rows


def read_answers(path: Path) -> Answers:
    """Read a file that ``tdistill evaluate`` wrote: ``answers/KEY/answers.jsonl``.

    Raises:
        DataError: the file is missing, does not come from ``evaluate``, or holds one answer twice; or the manifest beside it is damaged.
    """
    if not path.is_file():
        raise DataError(f"No answers at {path}: give a file that `tdistill evaluate` writes, …/answers/KEY/answers.jsonl.")
    texts: dict[tuple[str, int], str] = {}
    for row in read_json_lines(path, ("prompt_id", "sample_index", "text")):
        key = (row["prompt_id"], row["sample_index"])
        if tuple(map(type, (*key, row["text"]))) != (str, int, str):
            raise DataError(f"{path}: prompt_id and text must be text and sample_index a whole number, got {key!r}, {row['text']!r:.40}.")
        if key in texts:
            raise DataError(f"{path} holds prompt {key[0]}, sample {key[1]} twice: which of the two is the answer?")
        texts[key] = row["text"]
    return Answers(path, texts, _notes(path.resolve().parent / MANIFEST))


def _notes(manifest: Path) -> Mapping[str, Any]:
    """Return what a manifest notes; nothing if it is not there.

    Raises:
        DataError: it is damaged.
    """
    if not manifest.is_file():
        return {}
    advice = f"Delete {manifest.parent} and evaluate again, or copy the answers elsewhere and name their prompts with --prompts."
    check_form(record := read_json(manifest, DataError, advice), dict[str, Any], str(manifest), DataError, advice)
    check_form(notes := record.get("notes"), dict[str, Any], f"{manifest}: `notes`", DataError, advice)
    for name in ("system", "prompts"):
        if not isinstance(notes.get(name), str):
            raise DataError(f"{manifest} is no manifest of answers: it does not note their {name}. {advice}")
    return notes


def find_prompts(answers: Sequence[Answers], given: str | None) -> str:
    """Return where the prompts are: ``given``, or what the manifest beside the answers names.

    Raises:
        DataError: nothing is given, and no evaluation stands beside the answers.
    """
    if given:
        return given
    for own in answers:
        if own.notes:
            return str(own.notes["prompts"])
    raise DataError(
        f"Answers name their prompts by id only, and no {MANIFEST} stands beside {answers[0].path.parent} to say where "
        "these come from: give the file with --prompts."
    )


def join(a: Answers, b: Answers, source: str, limit: int | None) -> Joined:
    """Pair the answers to the same prompt and sample.

    Only the first ``limit`` prompts count, in the order of their ids. Ids are hashes, so this is a random choice.

    Raises:
        DataError: no prompt is shared, or a shared one is not in ``source``.
    """
    shared = sorted(a.texts.keys() & b.texts.keys())
    only_a, only_b = len(a.prompt_ids - b.prompt_ids), len(b.prompt_ids - a.prompt_ids)
    if not shared:
        raise DataError(
            f"{a.path} ({len(a.prompt_ids)} prompts) and {b.path} ({len(b.prompt_ids)} prompts) share no answered prompt: "
            "give answers of two systems to the same prompts."
        )
    try:
        prompts = {p.prompt_id: p for p in load_prompts(source)}
    except DataError as error:
        raise DataError(f"{error} Name the prompts that were answered with --prompts.") from error
    ids = sorted({prompt_id for prompt_id, _ in shared})
    unknown = [i for i in ids if i not in prompts]
    if unknown:
        raise DataError(
            f"{len(unknown)} of the {len(ids)} prompts that both systems answered are not among the {len(prompts)} in {source} "
            f"(the first: {unknown[0]}): give the file they come from with --prompts."
        )
    kept = set(ids[:limit])
    pairs = [Pair(p, i, request_text(prompts[p]), a.texts[p, i], b.texts[p, i]) for p, i in shared if p in kept]
    both = a.prompt_ids & b.prompt_ids
    left_out = {
        "prompts_only_in_a": only_a,
        "prompts_only_in_b": only_b,
        "samples_without_partner": sum(p in both for p, _ in a.texts.keys() ^ b.texts.keys()),
        "prompts_over_limit": len(ids) - len(kept),
    }
    return Joined(pairs, len(kept), left_out)


def request_text(prompt: Prompt) -> str:
    """Return a prompt as the judge reads it: the text of a single question, or a conversation with its roles."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in prompt.messages)


def questions(pairs: Sequence[Pair], model: str) -> list[Question]:
    """Return two questions for each pair, one in each order."""
    template = files("tdistill.judge").joinpath("prompt.txt").read_text("utf-8")
    found = []
    for pair in pairs:
        for order in ORDERS:
            first, second = (pair.a, pair.b) if order == "AB" else (pair.b, pair.a)
            content = template.format(request=pair.request, answer_a=first, answer_b=second)
            key = hashlib.sha256(json.dumps([model, order, content]).encode()).hexdigest()[:KEY_LENGTH]
            found.append(Question(key, pair.prompt_id, pair.sample_index, order, content))
    return found
