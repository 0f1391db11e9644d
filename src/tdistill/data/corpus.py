"""Read a plain-text corpus as packed windows, for the language-modelling term."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from tdistill.models.control import TextEncoder
from tdistill.runtime.errors import DataError
from tdistill.runtime.parse import parse_json
from tdistill.runtime.paths import local_path
from tdistill.runtime.progress import say
from tdistill.runtime.textfiles import checked_text, inner_suffix, read_text

FORMATS = "a .txt or .jsonl file (or either as .gz)"
_BLANK_LINES = re.compile(r"\n(?:[ \t\f\v]*\n)+")


class PackedCorpus:
    """Hold windows of ``window`` tokens, cut without padding from all documents in sequence; an end-of-text token follows each document.

    The names of control tokens in a document are text.

    Args:
        source: a ``.txt`` file (paragraphs, apart by blank lines, are its documents) or a ``.jsonl`` file with ``text``; ``.gz`` of either.
        tokenizer: the student's.
        window: tokens.

    Raises:
        DataError: the file can't be read (see ``read_documents``), has fewer tokens than one window, or holds a control token's name that
            the tokenizer can't read as text; or the tokenizer has no end-of-text token.
    """

    def __init__(self, source: str, tokenizer: PreTrainedTokenizerBase, window: int):
        end = tokenizer.eos_token_id
        if end is None:
            raise DataError(f"{source}: the tokenizer has no end-of-text token to end documents with. Set eos_token in tokenizer_config.json.")
        places, texts = zip(*_located(source), strict=True)
        encoder = TextEncoder(tokenizer)
        named = sum(map(encoder.holds_control, texts))
        if named:
            say(f"{source}: {named} of {len(texts)} documents hold the name of a control token, which is read as plain text")
        ids = [np.asarray([*row, end], np.int64) for row in encoder.encode_texts(texts, places)]
        tokens = np.concatenate(ids)
        if len(tokens) < window:
            raise DataError(f"{source} has {len(tokens)} tokens, less than one window of {window}: give more text, or lower train.lm.window.")
        self._windows = tokens[: len(tokens) // window * window].reshape(-1, window)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._windows[index]


def read_documents(source: str) -> Iterator[str]:
    """Read the texts of a corpus. The whole file is checked before the first text is returned. Texts of white space alone are left out.

    Raises:
        DataError: no file stands there, it has another format, not UTF-8, a line without ``text``, or no text at all; the line is named.
    """
    return iter([text for _, text in _located(source)])


def corpus_key(source: str) -> str:
    """Return 64 hex digits of the documents of a corpus, in their order; the file's path, compression and dates are no part of them.

    Raises:
        DataError: see ``read_documents``.
    """
    return hashlib.sha256(json.dumps(list(read_documents(source))).encode()).hexdigest()


def _located(source: str) -> list[tuple[str, str]]:
    """Return pairs (place, document)."""
    path = local_path(source)
    suffix = inner_suffix(path)
    if path.is_dir():
        raise DataError(f"No corpus at {path}: it is a directory. Name one file in it, {FORMATS}.")
    if not path.is_file() or suffix not in {".txt", ".jsonl", "" if path.suffix.lower() == ".gz" else ".txt"}:
        raise DataError(f"No corpus at {path}: give {FORMATS}.")
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    documents = _lines(path, text) if suffix == ".jsonl" else _paragraphs(path, text)
    found = [(where, document) for where, document in documents if document.strip()]
    if not found:
        raise DataError(f"{path} holds no text.")
    return found


def _paragraphs(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, part in enumerate(_BLANK_LINES.split(text), start=1):
        yield f"{path}, paragraph {number}", part.strip()


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_json(line, where, DataError, advice='Give an object with "text" on every line.')
        if not isinstance(record, dict) or "text" not in record:
            raise DataError(f'{where}: expected an object with "text".')
        yield where, checked_text(where, "text", record["text"])


def check_window(source: str, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, window: int) -> None:
    """Encode only as many documents as one window needs.

    Raises:
        DataError: all hold fewer tokens, or one can't be encoded.
    """
    found, encoder = 0, TextEncoder(tokenizer)
    for document in documents:
        found += sum(len(ids) + 1 for ids in encoder.encode_texts([document], [source]))
        if found >= window:
            return
    raise DataError(f"{source} has {found} tokens, less than one window of {window}: give more text, or lower train.lm.window.")
