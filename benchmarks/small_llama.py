"""Train a small Llama from scratch on one core, for the teachers and starts of benches."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tdistill.runtime.progress import bar

EOS, MODEL_INFO = "<eos>", "models.json"
IGNORED = -100
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"  # the prompt itself


@dataclass(frozen=True)
class Size:
    """Hold the size of a Llama, and how it is trained."""

    hidden: int
    layers: int
    steps: int
    learning_rate: float
    heads: int = 4
    positions: int = 256  # longest text in tokens
    weight_decay: float = 0.1
    init: float = 0.02  # standard deviation of new weights
    theta: float = 10000.0  # base of the wavelengths of rotary positions


def new_model(tokenizer: PreTrainedTokenizerFast, size: Size, seed: int, *, tied: bool = True) -> LlamaForCausalLM:
    """Return a model with random weights. Its head is its embedding, unless ``tied`` is false."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=tied,
        initializer_range=size.init,
        rope_parameters={"rope_type": "default", "rope_theta": size.theta},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train_model(
    model: LlamaForCausalLM,
    draw: Callable[[random.Random], list[tuple[str, str]]],
    tokenizer: PreTrainedTokenizerFast,
    size: Size,
    seed: int,
    title: str,
) -> LlamaForCausalLM:
    """Train a model with AdamW and one cosine.

    Args:
        model: the model, which is changed.
        draw: returns the documents of a step, each as its beginning, which is given, and the rest, which is learnt.
        tokenizer: the model's tokenizer.
        size: number of steps and learning rate.
        seed: seed of ``draw``'s random numbers.
        title: title of the progress bar.
    """
    model.train()
    decay = size.weight_decay
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=decay, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, size.learning_rate, size.steps, pct_start=0.1)
    rng = random.Random(seed)
    with bar(title, size.steps, "step") as progress:
        for step in range(size.steps):
            ids, mask, labels = batch_of(draw(rng), tokenizer)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.advance()
            if step % 20 == 0:
                progress.note(f"loss {loss.item():.3f}")
    return model.eval()


def batch_of(documents: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels [B, L] of pairs of a given and a learnt text. Every document ends with the end-of-text token."""
    given, learnt = (tokenizer(list(part)).input_ids for part in zip(*documents, strict=True))
    rows = [[*first, *rest, tokenizer.eos_token_id] for first, rest in zip(given, learnt, strict=True)]
    ids, mask, known = (torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long) for _ in range(3))
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)], known[i, : len(given[i])] = torch.tensor(row), 1, 1
    return ids, mask, ids.masked_fill((mask == 0) | (known == 1), IGNORED)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save a model with its tokenizer."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
