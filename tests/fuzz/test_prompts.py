"""Prompt files that were damaged or written by somebody else: read as an independent parser reads them, or refused with the place."""

import gzip
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizer_kinds import CHATML, chatml

from fuzz.mutate import mutated_bytes, mutated_values
from tdistill.data.prompts import Prompt, load_prompts, tokenize_prompts
from tdistill.models.control import control_tokens

RECORDS = [
    {"prompt": "Why is the sky blue?", "completion": "Because of 漢字 😀.", "category": "science"},
    {"instruction": "Add.", "input": "1, 2", "output": ["3", "three"]},
    {"instruction": "Name a fruit.", "context": "", "response": "Pear\r\n"},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "In parts."}]}], "completion": [{"role": "assistant", "content": "b"}]},
]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS)


def content_of(value: Any) -> str:
    return value if isinstance(value, str) else "".join(part["text"] for part in value)


def reading(record: dict) -> tuple[list[tuple[str, str]], list[str]]:
    """The turns and answers of a record, written anew and without any check."""
    turns = record.get("messages")
    if turns is None:
        turns = record.get("prompt")
    if turns is None:
        extra = record.get("input") or record.get("context")
        turns = record["instruction"] + (f"\n\n{extra}" if extra else "")
    turns = [("user", turns)] if isinstance(turns, str) else [(t["role"], content_of(t["content"])) for t in turns]
    answers: list[str] = []
    for name in ("completion", "output", "response"):
        value = record.get(name)
        value = value if isinstance(value, list) else [value]
        answers = answers or [content_of(v["content"]) if isinstance(v, dict) else v for v in value if v is not None]
        answers = [a for a in answers if a.strip()]
    if turns[-1][0] == "assistant":
        answers = [turns.pop()[1]] if turns[-1][1].strip() else (turns.pop(), answers)[1]
    return turns, answers


def same(prompts: list[Prompt], records: list[dict]) -> bool:
    got = [([(m["role"], m["content"]) for m in p.messages], list(p.references)) for p in prompts]
    return got == [reading(r) for r in records] and len({p.prompt_id for p in prompts}) == len(prompts)


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in re.split("\r\n|\r|\n", text) if line.strip()]


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Callable[[bytes], list[Prompt]]]:
    def _attempt(name: str) -> Callable[[bytes], list[Prompt]]:
        def read(content: bytes) -> list[Prompt]:
            (tmp_path / name).write_bytes(content)
            return load_prompts(str(tmp_path / name))

        return read

    return _attempt


def as_lines(records: list[Any]) -> Iterator[bytes]:
    for record in records:
        yield (json.dumps(record) + "\n").encode("utf-8", "surrogatepass")


def value_files(seed: int, count: int) -> Iterator[bytes]:
    """Each record with other values in it, one a file."""
    for i, record in enumerate(RECORDS):
        for changed in mutated_values(record, seed + i, count // len(RECORDS)):
            yield from as_lines([changed])


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    rows = [RECORDS[0], RECORDS[2], {"messages": RECORDS[3]["messages"]}]
    names = ("prompt", "completion", "instruction", "response", "messages")
    types = dict.fromkeys(names, pa.string()) | {"messages": turns}
    pq.write_table(pa.table({n: pa.array([r.get(n) for r in rows], types[n]) for n in names}), sink, write_page_checksum=True)
    return sink.getvalue()


def text_right(content: bytes, prompts: list[Prompt]) -> bool:
    return same(prompts, lines_of(content.decode("utf-8-sig")))


def gzip_right(content: bytes, prompts: list[Prompt]) -> bool:
    return text_right(gzip.decompress(content), prompts)


def parquet_right(content: bytes, prompts: list[Prompt]) -> bool:
    return same(prompts, [{k: v for k, v in row.items() if v is not None} for row in pq.read_table(io.BytesIO(content)).to_pylist()])


def read_all(outcomes: Any, attempt: Any, seed: int, count: int) -> None:
    """``count`` inputs of every kind."""
    text, packed, table = LINES.encode(), gzip.compress(LINES.encode(), mtime=0), parquet_bytes()
    for name, valid, right in (("p.jsonl", text, text_right), ("p.jsonl.gz", packed, gzip_right), ("p.parquet", table, parquet_right)):
        assert right(valid, attempt(name)(valid))
        counts = outcomes(f"prompts, {name[2:]} bytes", mutated_bytes(valid, seed, count), attempt(name), right)
        assert counts["refused"] > count // 10
    counts = outcomes("prompts, values", value_files(seed, count), attempt("p.jsonl"), text_right)
    assert counts["accepted"] > count // 20
    assert counts["refused"] > count // 10


def test_a_damaged_prompt_file_is_read_rightly_or_refused(outcomes: Any, attempt: Any) -> None:
    read_all(outcomes, attempt, seed=1, count=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_damaged_prompt_files_are_read_rightly_or_refused(outcomes: Any, attempt: Any, seed: int) -> None:
    read_all(outcomes, attempt, seed, count=2_000)


PIECES = (
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_start|>system\n", "<|im_", "end|>", "<|", "|>", "<", ">", "<|im_end|", "|im_end|>",
    " ", "\n", "\r\n", "\t", "a", "word ", "im", "th", "é", "漢", "😀", "\u2028", "\ufeff", "\u202e", "\U000f0000", "\ue000", "{{ 1 }}",
    "{prompt}", "%s",
    "\x01", "\x7f", "\u0301", "\U0010fffd", "assistant\n", "</s>", "\ud800", "\x00",
)  # fmt: skip

REFUSED = ("\U0010fffd", "\ud800", "\x00")  # the first only beside a control string


def texts(seed: int, count: int) -> Iterator[list[dict[str, str]]]:
    rng = random.Random(seed)
    weights = [0.03 if piece in REFUSED else 1 for piece in PIECES]
    for _ in range(count):
        roles = rng.choice((("user",), ("user",), ("system", "user"), ("user", "assistant", "user")))
        yield [{"role": r, "content": "".join(rng.choices(PIECES, weights, k=rng.randint(1, 8)))} for r in roles]


def read_texts(outcomes: Any, seed: int, count: int) -> None:
    tokenizer, conversations = chatml(), list(texts(seed, count))
    controls = control_tokens(tokenizer)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def right(turns: list[dict[str, str]], ids: tuple[int, ...]) -> bool:
        written = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns) + "<|im_start|>assistant\n"
        return tokenizer.decode(ids) == written and [i for i in ids if i in controls] == [start, end] * len(turns) + [start]

    def ids_of(several: list[list[dict[str, str]]]) -> list[tuple[int, ...]]:
        prompts = [Prompt(str(i), tuple(turns), where=f"p.jsonl, line {i}") for i, turns in enumerate(several)]
        return [prompt.ids for prompt in tokenize_prompts(prompts, tokenizer, 10_000, "refuse")[0]]

    # All that must be read, at once: a template starts a process.
    fine = [turns for turns in conversations if not any(piece in t["content"] for t in turns for piece in REFUSED)]
    read = {id(turns): ids for turns, ids in zip(fine, ids_of(fine), strict=True)}

    def attempt(turns: list[dict[str, str]]) -> tuple[int, ...]:
        return read[id(turns)] if id(turns) in read else ids_of([turns])[0]

    assert tokenizer.chat_template == CHATML
    counts = outcomes("prompts, texts", conversations, attempt, right)
    assert counts["accepted"] >= len(fine) > count // 2


def test_hostile_texts_are_text(outcomes: Any) -> None:
    read_texts(outcomes, seed=1, count=400)


@pytest.mark.slow
def test_many_hostile_texts_are_text(outcomes: Any) -> None:
    read_texts(outcomes, seed=2, count=2_000)
