"""A plain-text corpus as packed windows, for the language-modelling term."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from tdistill.errors import DataError

TEXT_SUFFIXES = {".txt", ".jsonl", ".gz"}


class PackedCorpus:
    """Windows of ``window`` tokens: all documents one after the other, each ended by an end-of-text token, cut with no padding.

    Args:
        source: a ``.txt`` file (paragraphs, apart by blank lines, are its documents) or a ``.jsonl`` file with ``text``; ``.gz`` of either.
        tokenizer: the student's.
        window: tokens.

    Raises:
        DataError: no such file, not UTF-8, a record without text, or fewer tokens than one window.
    """

    def __init__(self, source: str, tokenizer: PreTrainedTokenizerBase, window: int):
        end = tokenizer.eos_token_id
        ids = [
            np.asarray([*row, *([] if end is None else [end])], np.int64)
            for row in tokenizer(list(read_documents(source)), add_special_tokens=False).input_ids
        ]
        tokens = np.concatenate(ids) if ids else np.zeros(0, np.int64)
        if len(tokens) < window:
            raise DataError(f"{source} has {len(tokens)} tokens, less than one window of {window}: give more text, or lower train.lm.window.")
        self._windows = tokens[: len(tokens) // window * window].reshape(-1, window)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._windows[index]


def read_documents(source: str) -> Iterator[str]:
    """The texts of a file.

    Raises:
        DataError: see ``PackedCorpus``.
    """
    path = Path(source).expanduser()
    if not path.is_file() or path.suffix not in TEXT_SUFFIXES:
        raise DataError(f"No corpus at {path}: give a .txt or .jsonl file (or either as .gz).")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}") from error
    if ".jsonl" not in path.suffixes:
        yield from (part.strip() for part in text.split("\n\n") if part.strip())
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise DataError(f'{path}, line {number}: expected an object with "text".') from None
