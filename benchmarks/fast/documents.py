"""Text → documents short enough to be answered whole, a tokenizer of their own, and prompts.

A document is a slice of the text from one sentence start to a later sentence end. Cut at a word, its beginning is the prompt and
the rest, with the end-of-text token, the answer. Prompts go through tdistill's own instruction template, whose two halves are single
tokens of the vocabulary.
"""

import gzip
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tdistill.rollout.prompts import INSTRUCTION_TEMPLATE

EOS = "<|endoftext|>"
OPENING, CLOSING = INSTRUCTION_TEMPLATE.split("{prompt}")
SPECIAL_TOKENS = (EOS, OPENING, CLOSING)
SENTENCE_GAP = re.compile(r"(?<=[.!?])\s+")
# Headings of WikiText: " = Title = ", " = = Section = = ".
HEADING = re.compile(r"^\s*=.*=\s*$")
WORD_GAPS = " \n"
SHAKESPEARE, WIKITEXT_TRAIN, WIKITEXT_TEST = "tinyshakespeare.txt.gz", "wikitext2_valid.txt.gz", "wikitext2_test.txt.gz"


@dataclass(frozen=True)
class Lengths:
    """What a document and its prompt may measure."""

    min_words: int = 24  # a document ends at the first sentence end from here on
    prompt_tokens: tuple[int, int] = (16, 32)
    answer_tokens: tuple[int, int] = (8, 48)  # the end-of-text token included
    held_out_share: float = 0.1  # of Shakespeare, from the end: its documents are test prompts alone


@dataclass(frozen=True)
class Text:
    """A source, and what of it may be learned from."""

    name: str
    train: str
    test: str


@dataclass(frozen=True)
class Document:
    """A slice of a source as token ids, and where it may be cut: (token index, character index)."""

    source: str
    text: str
    ids: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]


def read_texts(directory: Path, held_out_share: float) -> tuple[list[Text], dict[str, str]]:
    """Shakespeare, split into its beginning and its end, and WikiText-2, whose test part is another file; and the files' SHA-256."""
    raw = {name: (directory / name).read_bytes() for name in (SHAKESPEARE, WIKITEXT_TRAIN, WIKITEXT_TEST)}
    text = {name: gzip.decompress(content).decode("utf-8") for name, content in raw.items()}
    first = text[SHAKESPEARE].rfind("\n\n", 0, round(len(text[SHAKESPEARE]) * (1.0 - held_out_share)))
    texts = [
        Text("shakespeare", text[SHAKESPEARE][:first], text[SHAKESPEARE][first:]),
        Text("wikitext2", text[WIKITEXT_TRAIN], text[WIKITEXT_TEST]),
    ]
    return texts, {name: hashlib.sha256(content).hexdigest() for name, content in raw.items()}


def slices(text: str, min_words: int) -> Iterator[str]:
    """Whole sentences in their order, as few as have ``min_words`` words; headings and what is left over are dropped."""
    body = "\n".join(line for line in text.split("\n") if not HEADING.match(line))
    start = 0
    for gap in SENTENCE_GAP.finditer(body):
        piece = body[start : gap.start()].strip()
        if len(piece.split()) >= min_words:
            yield piece
            start = gap.end()


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end-of-text token and the two halves of the instruction template; no chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, clean_up_tokenization_spaces=False)


def documents(source: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, lengths: Lengths) -> list[Document]:
    """The slices that can be cut so that prompt and answer both have a length that is allowed."""
    found = []
    for text, encoding in zip(texts, tokenizer.backend_tokenizer.encode_batch(list(texts)), strict=True):
        cuts = _cuts(text, [start for start, _ in encoding.offsets], lengths)
        if cuts:
            found.append(Document(source, text, tuple(encoding.ids), cuts))
    return found


def _cuts(text: str, starts: Sequence[int], lengths: Lengths) -> tuple[tuple[int, int], ...]:
    """Tokens that begin with the gap before a word, neither too early nor too late."""
    (shortest, longest), (least, most) = lengths.prompt_tokens, lengths.answer_tokens
    total = len(starts) + 1  # with the end-of-text token
    allowed = range(max(shortest, total - most), min(longest, total - least) + 1)
    return tuple((i, starts[i]) for i in allowed if text[starts[i]] in WORD_GAPS and text[starts[i] - 1] not in WORD_GAPS)


def as_read(document: Document, cut: int, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """What a model reads of a document cut at token ``cut``: template, prompt, template, answer, end; and where the answer starts."""
    opening, closing = tokenizer.convert_tokens_to_ids([OPENING, CLOSING])
    prompt, answer = document.ids[:cut], document.ids[cut:]
    return [opening, *prompt, closing, *answer, tokenizer.eos_token_id], cut + 2


def prompt_record(document: Document, rng: random.Random) -> dict[str, str]:
    """A line of a prompt file, cut at random."""
    _, place = rng.choice(document.cuts)
    return {"prompt": document.text[:place], "completion": document.text[place:], "source": document.source}
