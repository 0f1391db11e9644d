"""Compute the size of the vocabulary: how many rows of a head are tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tdistill.runtime.errors import ModelError


@dataclass(frozen=True)
class Vocabulary:
    """Hold which token ids a model may write, and which of them end a response."""

    size: int  # V: ids from 0 to V − 1 are tokens, and rows of a head from V on are padding
    eos_ids: Sequence[int] = ()


def vocabulary_size(tokenizer: PreTrainedTokenizerBase | None, models: dict[str, PreTrainedModel], eos_ids: Sequence[int] = ()) -> int:
    """Return V: token ids from 0 to V − 1 are sampled, scored and trained on, and rows of a head from V on are padding.

    V is the largest id of the tokenizer plus one, or the rows of the smallest head or embedding where they are fewer. It is not
    ``len(tokenizer)``, which is too small where ids have gaps, and too large where a tokenizer has a token without a row.

    Args:
        tokenizer: the tokenizer of all the models; with None, every row is a token.
        models: name (for messages) → model. All of them use the same token ids.
        eos_ids: ids that end a response.

    Raises:
        ModelError: a model has no head, or an id of ``eos_ids`` lies at V or above.
    """
    sizes = {} if tokenizer is None else {"the tokenizer's largest id + 1": max(tokenizer.get_vocab().values()) + 1}
    for name, model in models.items():
        sizes |= {f"the {name}'s {part}": rows for part, rows in _rows(name, model).items()}
    smallest = min(sizes, key=lambda key: sizes[key])
    beyond = [i for i in eos_ids if i >= sizes[smallest]]
    if beyond:
        listed = ", ".join(f"{k} {v}" for k, v in sizes.items())
        raise ModelError(
            f"The end-of-text ids {beyond} lie beyond the vocabulary of {sizes[smallest]} tokens ({listed}), so no response could end "
            "with them. Correct eos_token_id in generation_config.json or in the tokenizer, or use a model with a row for them."
        )
    return sizes[smallest]


def _rows(name: str, model: PreTrainedModel) -> dict[str, int]:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise ModelError(f"The {name} ({type(model).__name__}) has no language-model head: tdistill needs a causal language model.")
    return {"head rows": head.weight.shape[0]} | ({"embedding rows": embeddings.weight.shape[0]} if embeddings is not None else {})
