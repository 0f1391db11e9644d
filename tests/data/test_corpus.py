"""Corpora: which documents a file holds, and their tokens."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_kinds import KINDS, chatml, word_level

from tdistill.data.corpus import PackedCorpus, read_documents
from tdistill.models.control import control_tokens
from tdistill.runtime.errors import DataError

DOCUMENTS = ["First line\nsecond line.", "Zwei – 漢字 😀", "  \x0bthree\u2028still three".strip(), "a{b}\\n"]
TEXT = "\n\n".join(DOCUMENTS)
LINES = "".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS)


def saved(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", TEXT),
        ("c.TXT", TEXT + "\n"),
        ("c.txt", "\n\n \n" + TEXT.replace("\n\n", "\n\n\n \t\n\n") + "\n\n \n"),
        ("c.txt", TEXT.replace("\n", "\r\n")),
        ("c.txt", TEXT.replace("\n\n", "\n \t\n").replace("\n", "\r\n")),
        ("c.txt", TEXT.replace("\n", "\r")),
        ("c.txt", "\ufeff" + TEXT),
        ("c.txt.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("c.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("C.TXT.GZ", gzip.compress(TEXT.replace("\n", "\r\n").encode(), mtime=0)),
        ("c.jsonl", LINES),
        ("c.JSONL", LINES.replace("\n", "\r\n")),
        ("c.jsonl", LINES.replace("\n", "\n" + json.dumps({"text": " \n", "n": 1}) + "\n\n")),
        ("c.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("c.txt.jsonl", LINES),
    ],
)
def test_every_form_of_a_corpus_holds_the_same_documents(tmp_path: Path, name: str, content: Any) -> None:
    assert list(read_documents(saved(tmp_path, name, content))) == DOCUMENTS


def test_the_last_suffix_says_what_a_file_is(tmp_path: Path) -> None:
    assert list(read_documents(saved(tmp_path, "c.jsonl.txt", LINES))) == [LINES.strip()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "", "holds no text"),
        ("c.txt", " \r\n\r\n\t", "holds no text"),
        ("c.jsonl", "\n", "holds no text"),
        ("c.jsonl", '{"text": ""}\n', "holds no text"),
        ("c.jsonl", LINES + '{"txt": "b"}', 'line 5: expected an object with "text"'),
        ("c.jsonl", LINES + '{"text": null}', "line 5: `text` must be text, got NoneType"),
        ("c.jsonl", LINES + '{"text": 5}', "line 5: `text` must be text, got int 5"),
        ("c.jsonl", LINES + '{"text": ["a"]}', "line 5: `text` must be text, got list"),
        ("c.jsonl", LINES + '["text"]', 'line 5: expected an object with "text"'),
        ("c.jsonl", LINES + '"text"', 'line 5: expected an object with "text"'),
        ("c.jsonl", LINES + '{"text": "a\\ud800"}', "line 5: a text holds half of a surrogate pair"),
        ("c.jsonl", LINES + '{"text": "a\\u0000"}', "line 5: `text` holds a NUL character"),
        ("c.jsonl", LINES + '{"text": NaN}', "line 5: NaN is no JSON"),
        ("c.jsonl", LINES + "[" * 100_000, "line 5: JSON nested too deeply"),
        ("c.jsonl", LINES + '{"text": "a", "text": "b"}', "line 5: the key 'text' stands twice"),
        ("c.jsonl", LINES[:-3], "line 4: not JSON"),
        ("c.txt", TEXT.encode("utf-16"), "UTF-16 text"),
        ("c.txt", "plain text".encode("utf-16-be"), "looks like UTF-16"),
        ("c.txt", b"a\n\xff", r"line 2: not UTF-8 \(byte 0 is 0xff\)"),
        ("c.txt", b"a\nb\x00", "line 2: a NUL character"),
        ("c.txt", gzip.compress(b"a", mtime=0), "gzip data"),
        ("c.txt.gz", b"no gzip", "can't be read"),
        ("c.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-4], "can't be read"),
        ("c.txt.gz", gzip.compress(b"x" * (80 << 20), mtime=0), "decompression bomb"),
        ("c.json", '[{"text": "a"}]', "give a .txt or .jsonl file"),
        ("c.json.gz", gzip.compress(b'[{"text": "a"}]', mtime=0), "give a .txt or .jsonl file"),
        ("c.parquet", "x", "give a .txt or .jsonl file"),
    ],
)
def test_a_corpus_that_is_none_says_where_and_why(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(read_documents(saved(tmp_path, name, content)))  # the whole file is checked before the first document


@pytest.mark.parametrize("source", ["", ".", "~nouser/c.txt", "x" * 5000 + ".txt", "a\x00.txt", "nowhere.txt"])
def test_a_path_that_is_no_file_says_so(source: str) -> None:
    with pytest.raises(DataError, match="No corpus at|can't be read as a path"):
        read_documents(source)


@pytest.mark.parametrize("kind", KINDS)
def test_control_strings_in_a_document_are_text_and_every_document_ends_once(tmp_path: Path, kind: str, capsys: Any) -> None:
    tokenizer = KINDS[kind]()
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = "</s>"
    eos = tokenizer.eos_token
    documents = [f"a{eos}b", "plain", f"{eos}", f"c {eos}{eos} d"]
    packed = PackedCorpus(saved(tmp_path, "c.txt", "\n\n".join(documents)), tokenizer, 4)
    flat = np.concatenate([packed[i] for i in range(len(packed))]).tolist()
    ends = [i for i, t in enumerate(flat) if t == tokenizer.eos_token_id]
    whole = [flat[a:b] for a, b in zip([0, *(i + 1 for i in ends)], ends, strict=False)]
    assert [tokenizer.decode(ids).lstrip() for ids in whole] == documents[: len(whole)]
    assert len(whole) >= 3
    assert not set().union(*whole) & set(control_tokens(tokenizer))
    assert "3 of 4 documents hold the name of a control token, which is read as plain text" in " ".join(capsys.readouterr().err.split())


def test_a_document_that_can_not_be_read_as_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c\.txt, paragraph 2: the text holds '<eos>'"):
        PackedCorpus(saved(tmp_path, "c.txt", "a b\n\na <eos> b"), word_level(), 2)


def test_documents_need_an_end(tmp_path: Path) -> None:
    tokenizer = chatml()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="has no end-of-text token to end documents with"):
        PackedCorpus(saved(tmp_path, "c.txt", TEXT), tokenizer, 4)
