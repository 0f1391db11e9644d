"""Load tokenizers, compare them, and find the tokens that end a response."""

import hashlib
import json

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tdistill.models.control import turn_end
from tdistill.models.find import ModelSource, whole_model
from tdistill.models.lora import is_adapter
from tdistill.models.weights import foreign
from tdistill.runtime.errors import ModelError

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer_source(source: ModelSource) -> ModelSource:
    """Return the source of a model's tokenizer: the model itself, or the base of adapters that have no tokenizer of their own."""
    if is_adapter(source.directory) and not any((source.directory / name).is_file() for name in TOKENIZER_FILES):
        return whole_model(source)
    return source


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: from its directory, its GGUF file, or the base of its adapters.

    Raises:
        ModelError: no tokenizer can be read.
    """
    source = tokenizer_source(source)
    with foreign(f"Can't load a tokenizer from {source.name!r}"):
        return _tried(AutoTokenizer.from_pretrained(source.directory, trust_remote_code=trust_remote_code, **source.load_kwargs))


def _tried(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Use a tokenizer once, since a value of a wrong type in its files raises only then."""
    tokenizer.decode(tokenizer("a").input_ids, skip_special_tokens=True)
    tokenizer.get_vocab()
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of a hash over the vocabulary. They are equal if the same tokens have the same ids."""
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()[:16]


def check_same_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, names: tuple[str, str]) -> None:
    """Check that the student reads the teacher's token ids.

    Raises:
        ModelError: the vocabularies differ; the message names both models, both sizes and the first token that differs.
    """
    mine, theirs = teacher.get_vocab(), student.get_vocab()
    if mine == theirs:
        return
    by_id = [{i: t for t, i in vocab.items()} for vocab in (mine, theirs)]
    first = next(i for i in range(max(map(max, by_id)) + 1) if by_id[0].get(i) != by_id[1].get(i))
    raise ModelError(
        f"Teacher {names[0]!r} ({len(mine)} tokens) and student {names[1]!r} ({len(theirs)} tokens) have different vocabularies: "
        f"token {first} is {by_id[0].get(first)!r} and {by_id[1].get(first)!r}. Distilling on token ids needs one tokenizer: "
        "choose a student of the teacher's family."
    )


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every id that ends a response, ascending: from the generation config, the tokenizer, and the chat template's end of a turn.

    Raises:
        ModelError: there is none, so no response could end; or a value is not a token id.
    """
    found: set[int] = set()
    named = {
        "generation config": model.generation_config.eos_token_id if model.generation_config else None,
        "tokenizer": tokenizer.eos_token_id,
    }
    for where, ids in named.items():
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if any(type(i) is not int or i < 0 for i in listed):
            raise ModelError(
                f"The {where}'s eos_token_id must be a token id or a list of them, got {ids!r:.80}. Correct it in the model's files."
            )
        found.update(listed)
    end = turn_end(tokenizer)
    if end is not None:
        found.add(end)
    if not found:
        raise ModelError("Neither the model's generation config nor the tokenizer names an end-of-text token.")
    return tuple(sorted(found))
