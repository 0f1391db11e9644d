"""Tokenise text so that control tokens come from the template alone.

A tokenizer reads ``<|im_end|>`` in a user's question as the token that ends a turn. Here a control string in a text is text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tdistill.models.templates import text_after_answer
from tdistill.runtime.errors import DataError

_PRIVATE = (*range(0xF0000, 0xFFFFE), *range(0xE000, 0xF900))  # code points that no text should hold
_EDGE = "\U0010fffd"  # begins and ends the names that control tokens get in the tokenizer without them


class TextEncoder:
    """Encode texts and rendered templates as token ids.

    A text without control strings gets exactly the ids that the tokenizer gives. In other texts, a mark tells a control string of the text
    from one of the template: ``shield`` replaces every control string of the texts by a private character before they go into the template,
    and ``encode`` reads the rendered template.

    Args:
        tokenizer: fast or slow. It is not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._names = control_tokens(tokenizer)
        self._ids = frozenset(self._names)
        self._by_name = {name: i for i, name in self._names.items()}
        # Longest first: as the tokenizers read, and as one name may begin another.
        names = sorted(self._by_name, key=lambda name: (-len(name), name))
        self._pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        heads = {name[:n] for name in names for n in range(1, len(name))}
        tails = {name[n:] for name in names for n in range(1, len(name))}
        self._heads, self._tails, self._longest = heads, tails, max(map(len, names), default=0)
        reserved = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        self._unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in reserved else None

    def shield(self, texts: Sequence[str], template: str = "") -> tuple[list[str], dict[str, str]]:
        """Replace every control string in texts by one private character, and a piece of one at either end of a text too.

        Args:
            texts: the parts of one conversation.
            template: a private character that occurs in it is not used.

        Returns:
            The texts, and the string that every private character replaces.
        """
        free: Iterator[str] | None = None
        marks: dict[str, str] = {}

        def mark(piece: str) -> str:
            nonlocal free
            if piece not in marks:
                if free is None:
                    used = set(template).union(*texts)
                    free = (chr(c) for c in _PRIVATE if chr(c) not in used)
                marks[piece] = next(free)
            return marks[piece]

        shielded = [self._shield_edges(self._pattern.sub(lambda m: mark(m[0]), text), mark) for text in texts]
        return shielded, {character: piece for piece, character in marks.items()}

    def _shield_edges(self, text: str, mark: Callable[[str], str]) -> str:
        # The template's next character may complete a control string: "<|im_end|" and then ">".
        bare = text.rstrip()
        for n in range(min(self._longest - 1, len(bare)), 0, -1):
            if bare[-n:] in self._heads:
                text = text[: len(bare) - n] + mark(bare[-n:]) + text[len(bare) :]
                break
        bare = text.lstrip()
        for n in range(min(self._longest - 1, len(bare)), 0, -1):
            if bare[:n] in self._tails:
                return text[: len(text) - len(bare)] + mark(bare[:n]) + bare[n:]
        return text

    def encode(self, rendered: str, marks: Mapping[str, str], where: str, special: bool = False) -> list[int]:
        """Return the token ids of a rendered template whose texts were shielded.

        Args:
            rendered: the rendered template, with private characters for the control strings of the texts.
            marks: from ``shield``.
            where: file and line, for the message.
            special: let the tokenizer add its tokens at either end.

        Raises:
            DataError: this tokenizer can't read a control string as text.
        """
        before, after = self._frame if special else ([], [])
        own = [self._by_name[name] for name in self._pattern.findall(rendered)]
        expected = [i for i in (*before, *own, *after) if i in self._ids]
        ids = list(self._tokenizer(restored(rendered, marks), add_special_tokens=special).input_ids)
        found = [i for i in ids if i in self._ids]
        if found == expected or (not marks and self._known(found) == self._known(expected)):
            return ids
        ids = [*before, *self._split(rendered, marks), *after]
        self._check(rendered, marks, where)
        if self._known([i for i in ids if i in self._ids]) != self._known(expected):
            self._refuse(where, marks)
        return ids

    def encode_texts(self, texts: Sequence[str], where: Sequence[str]) -> list[list[int]]:
        """Return the token ids of plain texts. No id is that of a control token.

        Raises:
            DataError: this tokenizer can't read a control string as text.
        """
        if not texts:
            return []
        rows: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False).input_ids
        for i, row in enumerate(rows):
            if not self._ids.isdisjoint(row):
                (text,), marks = self.shield([texts[i]])
                rows[i] = self.encode(text, marks, where[i])
        return rows

    def holds_control(self, text: str) -> bool:
        """Tell whether a text contains a control string."""
        return self._pattern.search(text) is not None

    def _known(self, ids: Sequence[int]) -> list[int]:
        # The token for unknown characters comes from plain text too.
        return [i for i in ids if i != self._unknown]

    def _split(self, rendered: str, marks: Mapping[str, str]) -> list[int]:
        """Return the token ids: control strings in ``rendered`` become control tokens, and those behind marks become text."""
        if self._tokenizer.is_fast:
            named = self._pattern.sub(lambda m: _other_name(self._by_name[m[0]]), rendered)
            return self._renamed.encode(restored(named, marks), add_special_tokens=False).ids
        ids, start = [], 0
        for match in self._pattern.finditer(rendered):
            ids += [*self._plain(restored(rendered[start : match.start()], marks)), self._by_name[match[0]]]
            start = match.end()
        return ids + self._plain(restored(rendered[start:], marks))

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids) if text else []

    def _check(self, rendered: str, marks: Mapping[str, str], where: str) -> None:
        """Refuse a tokenizer whose two ways of reading differ: with harmless texts in the marks' places, both must give the same ids."""
        harmless = restored(rendered, dict.fromkeys(marks, "x"))
        usual = self._tokenizer(harmless, add_special_tokens=False).input_ids
        unread = self._unknown is not None and any(self._unknown in self._split(mark, marks) for mark in marks)
        if _EDGE in restored(rendered, marks) or list(usual) != self._split(harmless, {}) or unread:
            self._refuse(where, marks)

    def _refuse(self, where: str, marks: Mapping[str, str]) -> None:
        names = ", ".join(repr(piece) for piece in marks.values() if piece in self._by_name) or "a control token's name"
        raise DataError(f"{where}: the text holds {names}, which this tokenizer can only read as a control token. Remove it from the text.")

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer adds before and after a text."""
        bare, full = (list(self._tokenizer("x", add_special_tokens=s).input_ids) for s in (False, True))
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return full[:start], full[start + len(bare) :]

    @cached_property
    def _renamed(self) -> Tokenizer:
        """Return the tokenizer with new names for its control tokens, so that it reads their old names as text.

        Nothing else changes: normalisation, white space around control tokens, the blank before the first word.
        """
        content = json.loads(self._tokenizer.backend_tokenizer.to_str())
        names = {name: _other_name(i) for i, name in self._names.items()}
        model = content["model"]
        for token in content["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(name, name): i for name, i in model["vocab"].items()}
        else:  # Unigram: pieces with their scores, by id
            model["vocab"] = [[names.get(name, name), score] for name, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        return Tokenizer.from_str(json.dumps(content | {"post_processor": None, "truncation": None, "padding": None}))


def _other_name(token_id: int) -> str:
    return f"{_EDGE}{token_id}{_EDGE}"


def restored(text: str, marks: Mapping[str, str]) -> str:
    """Put the control strings back in the places of their marks."""
    return text.translate({ord(mark): piece for mark, piece in marks.items()}) if marks else text


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the names of all control tokens by id: the special ones, and the one that ends a turn."""
    found = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    end = turn_end(tokenizer)
    if end is not None:
        found[end] = tokenizer.added_tokens_decoder[end].content
    return {i: name for i, name in found.items() if name}


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the token that the chat template writes after an answer; None without a template, or if it writes only text there.

    White space before the token does not count. In some tokenizers this token is an added one that is not marked as special.
    """
    after = text_after_answer(tokenizer).lstrip()
    named = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    begins = [name for name in named if after.startswith(name)]
    return named[max(begins, key=len)] if begins else None
