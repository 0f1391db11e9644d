"""Damaged corpora: the documents that an independent reader finds, or an error that says where."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_kinds import chatml

from fuzz.mutate import mutated_bytes, mutated_values
from tdistill.data.corpus import PackedCorpus, read_documents
from tdistill.models.control import control_tokens

RECORD = {"text": "A document\nof two lines, 漢字 😀 <|im_end|>", "meta": {"n": 1}}
LINES = "".join(json.dumps(RECORD | {"text": f"{RECORD['text']} {i}"}, ensure_ascii=False) + "\n" for i in range(4))
TEXT = "\n\n".join(f"Paragraph {i} – of the corpus,\r\nsecond line <|endoftext|>" for i in range(6)) + "\n \t\r\nlast\n"


def paragraphs(text: str) -> list[str]:
    """Line by line, as the regular expression of the reader does not."""
    found: list[list[str]] = [[]]
    for line in re.split("\r\n|\r|\n", text):
        if line.strip(" \t\f\v"):
            found[-1].append(line)
        else:
            found.append([])
    return [document for part in found if (document := "\n".join(part).strip())]


def texts(text: str) -> list[str]:
    return [t for line in re.split("\r\n|\r|\n", text) if line.strip() and (t := json.loads(line)["text"]).strip()]


def text_right(content: bytes, documents: list[str]) -> bool:
    return documents == paragraphs(content.decode("utf-8-sig"))


def lines_right(content: bytes, documents: list[str]) -> bool:
    return documents == texts(content.decode("utf-8-sig"))


def gzip_right(content: bytes, documents: list[str]) -> bool:
    return text_right(gzip.decompress(content), documents)


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[str], Callable[[bytes], list[str]]]:
    def _attempt(name: str) -> Callable[[bytes], list[str]]:
        def read(content: bytes) -> list[str]:
            (tmp_path / name).write_bytes(content)
            return list(read_documents(str(tmp_path / name)))

        return read

    return _attempt


def value_files(seed: int, count: int) -> Iterator[bytes]:
    for changed in mutated_values(RECORD, seed, count):
        yield (LINES + json.dumps(changed)).encode("utf-8", "surrogatepass")


def read_all(outcomes: Any, attempt: Any, seed: int, count: int) -> None:
    """``count`` inputs of every kind."""
    text, packed, lines = TEXT.encode(), gzip.compress(TEXT.encode(), mtime=0), LINES.encode()
    for name, valid, right in (("c.txt", text, text_right), ("c.txt.gz", packed, gzip_right), ("c.jsonl", lines, lines_right)):
        assert right(valid, attempt(name)(valid))
        counts = outcomes(f"corpora, {name[2:]} bytes", mutated_bytes(valid, seed, count), attempt(name), right)
        assert counts["refused"] > count // 20
    counts = outcomes("corpora, values", value_files(seed, count), attempt("c.jsonl"), lines_right)
    assert counts["accepted"] > count // 20


def test_a_damaged_corpus_is_read_rightly_or_refused(outcomes: Any, attempt: Any) -> None:
    read_all(outcomes, attempt, seed=1, count=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_damaged_corpora_are_read_rightly_or_refused(outcomes: Any, attempt: Any, seed: int) -> None:
    read_all(outcomes, attempt, seed, count=2_000)


def test_the_windows_of_a_damaged_corpus_hold_its_text(outcomes: Any, attempt: Any, tmp_path: Path) -> None:
    tokenizer = chatml()
    inner = set(control_tokens(tokenizer)) - {tokenizer.eos_token_id}

    def windows(content: bytes) -> list[int]:
        (tmp_path / "c.txt").write_bytes(content)
        packed = PackedCorpus(str(tmp_path / "c.txt"), tokenizer, 1)
        return np.concatenate([packed[i] for i in range(len(packed))]).tolist()

    def right(content: bytes, ids: list[int]) -> bool:
        documents = paragraphs(content.decode("utf-8-sig"))
        ends = ids.count(tokenizer.eos_token_id) == len(documents)
        return ends and not set(ids) & inner and tokenizer.decode(ids) == "".join(f"{d}{tokenizer.eos_token}" for d in documents)

    outcomes("corpora, windows", mutated_bytes(TEXT.encode(), 5, 40), windows, right)
