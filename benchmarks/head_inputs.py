"""Build the inputs of the head's benches: real candidates of the committed roll-outs, and a language model whose body costs nothing.

The states are those of answers of 64 tokens in benchmarks/real/rollouts (SmolLM2-135M-Instruct, V = 49,152), cut to p. For another V their ids
are spread evenly over it, or, for a smaller one, taken modulo V; a token that then comes twice in a state is dropped. So the numbers of
candidates of a state and of a batch's union are real ones.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tdistill.data.collate import DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.runtime.errors import ConfigError

ROLLOUTS = Path(__file__).parent / "real/rollouts/train"
REAL_VOCABULARY, LENGTH = 49152, 64  # of the roll-outs
IDS = ("input_ids", "taken_ids", "labels", "candidate_ids")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class Size:
    """Name a size of the head and of its batch: N tokens, V rows, H columns, the type of both, and p."""

    tokens: int = 1024
    vocab: int = 151665
    width: int = 512
    dtype: str = "float32"
    p: float = 0.95

    @property
    def logits(self) -> int:
        """Return the bytes of one float32 copy of the logits, the unit of memory."""
        return 4 * self.tokens * self.vocab


@cache
def _answers(p: float) -> tuple[RolloutDataset, list[int]]:
    data = RolloutDataset(ROLLOUTS, p)
    return data, [i for i in range(len(data)) if len(data[i]["response_ids"]) == LENGTH]


def batch_of(size: Size, seed: int = 0) -> dict[str, Tensor]:
    """Return a batch as the collator builds it, of answers drawn at random. Each prompt is cut to its last token.

    Raises:
        ConfigError: the number of tokens is no multiple of an answer's, or there are not as many answers.
    """
    data, whole = _answers(size.p)
    count, rest = divmod(size.tokens, LENGTH)
    if rest or not 0 < count <= len(whole):
        raise ConfigError(f"tokens={size.tokens} must be a multiple of {LENGTH}, the length of an answer, up to {LENGTH * len(whole)}.")
    drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    examples = [data[whole[i]] for i in drawn]
    batch = DistillCollator()([example | {"input_ids": example["input_ids"][-1:]} for example in examples])
    batch = {name: _resized(x, size.vocab) if name in IDS else x for name, x in batch.items()}
    return batch if size.vocab >= REAL_VOCABULARY else _without_repeats(batch)


def _resized(ids: Tensor, vocab: int) -> Tensor:
    return ids * vocab // REAL_VOCABULARY if vocab >= REAL_VOCABULARY else ids % vocab


def _without_repeats(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch with every token once in a state: the first, which is the likeliest."""
    ids, legal, logp = batch["candidate_ids"], batch["legal"], batch["logp"]
    earlier = torch.ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool).tril(-1)
    kept = torch.stack(
        [one & ~((i[:, :, None] == i[:, None, :]) & earlier & one[:, None, :]).any(-1) for i, one in zip(ids, legal, strict=True)]
    )
    order = (~kept).long().argsort(dim=-1, stable=True)
    kept, ids, logp = (x.gather(-1, order) for x in (kept, ids, logp))
    width = int(kept.sum(-1).max())
    padded = {"candidate_ids": ids.masked_fill(~kept, 0), "logp": logp.masked_fill(~kept, -torch.inf), "legal": kept}
    return batch | {name: x[..., :width].contiguous() for name, x in padded.items()}


def bare_model(size: Size, seed: int) -> LlamaForCausalLM:
    """Return a Llama whose body costs nothing: embedding and one layer of width 8, which are frozen, a norm and an untied head.

    Its logits have a standard deviation of 2.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).train()
    torch.nn.init.normal_(model.lm_head.weight, std=2.0 / size.width**0.5)
    for part in (model.model.embed_tokens, model.model.layers):
        part.requires_grad_(False)
    return model.to(DTYPES[size.dtype])
