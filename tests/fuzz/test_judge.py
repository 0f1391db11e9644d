"""Hostile replies and journals of the judge: a verdict is what the reply's last line says, and all else is counted or refused."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz.mutate import mutated_bytes, mutated_values
from tdistill.judge.journal import Journal
from tdistill.judge.protocol import LONGEST_QUOTE, Reply, body_text, quote, read_reply, retry_after_s, without_refused
from tdistill.judge.score import parse_verdict
from tdistill.runtime.errors import JudgeError

KEY = "sk-very-secret-0123456789"
REPLY = {
    "id": "x",
    "model": "judge-2026",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Good.\n\nVerdict: A", "refusal": None}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
}
ROWS = [
    {"key": f"{i:032x}", "prompt_id": "p", "sample_index": 0, "order": "AB", "verdict": verdict, "failure": failure, "reply": "…",
     "served_model": "m", "prompt_tokens": 1, "completion_tokens": None, "max_tokens": 16, "options": {"seed": 0}}
    for i, (verdict, failure) in enumerate((("A", None), ("B", None), ("tie", None), (None, "empty")))
]  # fmt: skip
FAST, LONG = 400, 6_000


def clean(text: str) -> str:
    return text.replace(KEY, "[key]")


def read(body: bytes) -> tuple[Reply, str | None]:
    """As the client reads a body of status 200, with all that it may say of it."""
    text = body_text(body, "", "application/json")
    assert text is not None
    said = quote(text, clean)
    assert len(said) <= LONGEST_QUOTE
    without_refused({"seed": 0, "max_tokens": 1}, text)
    retry_after_s(text[:200], 0.0)
    reply = read_reply(text, clean)
    if reply is None:
        raise JudgeError(f"no chat completion, but: {said or '(no message)'}")
    verdict, failure = parse_verdict(reply)
    assert (verdict is None) == (failure is not None)
    json.dumps([reply.content, reply.served_model, verdict, failure], ensure_ascii=False).encode()  # as the journal writes it
    return reply, verdict


def is_right(body: bytes, result: tuple[Reply, str | None]) -> bool:
    """The verdict, if there is one, stands at the end of the first choice's content, as Python's own JSON parser finds it."""
    reply, verdict = result
    counts = [n for n in (reply.prompt_tokens, reply.completion_tokens) if n is not None]
    if any(type(n) is not int or n < 0 for n in counts):
        return False
    if verdict is None:
        return True
    raw = json.loads(body.decode(json.detect_encoding(body), "replace").replace("\x00", "").removeprefix("\ufeff"))
    content = raw["choices"][0]["message"]["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return text.strip().strip("*.").lower().endswith(verdict.lower())


@pytest.mark.parametrize("count", [FAST, pytest.param(LONG, marks=pytest.mark.slow)])
def test_replies(count: int, outcomes: Callable[..., Counter[str]]) -> None:
    valid = json.dumps(REPLY).encode()
    bodies = [*mutated_bytes(valid, 1, count), *(json.dumps(v).encode() for v in mutated_values(REPLY, 2, count))]
    bodies += [text.encode(form) for text in ("Verdict: A", valid.decode()) for form in ("utf-16", "utf-32", "utf-16-le", "latin-1")]
    counts = outcomes("judge replies", bodies, read, is_right)
    assert counts["accepted"] > count // 10
    assert counts["refused"] > count // 10


def rows_of(content: bytes, path: Path) -> dict[str, dict[str, Any]]:
    path.write_bytes(content)
    return Journal(path).rows


def rows_are_right(content: bytes, rows: dict[str, dict[str, Any]]) -> bool:
    """Every row is one that a judge may have written, from a whole line of the file."""
    whole = content[: content.rfind(b"\n") + 1]
    lines = [json.loads(line.decode("utf-8-sig")) for line in whole.split(b"\n") if line.strip()]
    return all(row in lines and row["verdict"] in ("A", "B", "tie", None) and isinstance(row["options"], dict) for row in rows.values())


@pytest.mark.parametrize("count", [FAST, pytest.param(LONG, marks=pytest.mark.slow)])
def test_journals(count: int, outcomes: Callable[..., Counter[str]], tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    valid = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    contents = [*mutated_bytes(valid, 3, count)]
    for rows in mutated_values(ROWS, 4, count):
        lines = rows if isinstance(rows, list) else [rows]
        contents.append("".join(json.dumps(row) + "\n" for row in lines).encode())
    counts = outcomes("judge journals", contents, lambda content: rows_of(content, path), rows_are_right)
    assert counts["refused"] > count // 4
    assert counts["accepted"] > count // 20
