"""Generate responses in batches with a KV cache, and take the teacher's candidates from the same logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.mdp.candidates import Candidates, top_p_candidates
from tdistill.models.forward import check_finite, next_logits
from tdistill.models.layout import left_pad
from tdistill.teachers.checks import check_ids
from tdistill.teachers.sampling import sample_tokens, token_noise

# Rows that have ended leave the batch once this share of it is done: dropping them costs a copy of the KV cache.
COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Sampling:
    """Set the distribution that responses are drawn from, and their length."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # transformers' own default of 50 would bias roll-outs without a word
    max_completion_length: int = 256
    seed: int = 0


@dataclass
class Generated:
    """Hold one response as it grows; candidate arrays have one entry a token."""

    prompt: TokenizedPrompt
    sample_index: int
    tokens: list[int]
    behaviour_logp: list[float]
    token_logp: list[float]
    candidate_ids: list[np.ndarray]
    candidate_logp: list[np.ndarray]
    kept_mass: list[float]
    finished: bool = False

    @property
    def text_tokens(self) -> list[int]:
        """Return the tokens of the text: all but the one that ends a finished response."""
        return self.tokens[:-1] if self.finished else self.tokens


def batch_plan(prompts: Sequence[TokenizedPrompt], samples: int, batch_size: int) -> list[list[tuple[TokenizedPrompt, int]]]:
    """Return (prompt, sample index) pairs by descending length, in batches. Fixed by the prompt list alone, never by what is left: float logits
    move with a batch's shape, so only an equal plan gives equal bytes.
    """
    pairs = [(p, i) for p in prompts for i in range(samples)]
    pairs.sort(key=lambda pair: (-len(pair[0].ids), pair[0].prompt.prompt_id, pair[1]))
    return [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]


@dataclass(frozen=True)
class Mixed:
    """Set a second author: every token is drawn from weight·(its distribution) + (1 − weight)·(the first model's)."""

    model: PreTrainedModel
    weight: float


@torch.inference_mode()
def generate_batch(
    model: PreTrainedModel,
    batch: Sequence[tuple[TokenizedPrompt, int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    vocab_size: int,
    candidate_top_p: float | None = None,
    max_candidates: int | None = None,
    mixed: Mixed | None = None,
) -> list[Generated]:
    """Sample one response for every (prompt, sample index), left-padded, all at once.

    Args:
        model: a causal LM in eval mode.
        batch: what to answer.
        sampling: temperature, nucleus, top-k, length limit and seed.
        eos_ids: any of them ends a response and is its last token.
        vocab_size: rows of the head that are real tokens; padding rows are never sampled and carry no mass.
        candidate_top_p: p of the candidates recorded for every token, at temperature 1 (None: none are).
        max_candidates: cap on them.
        mixed: the second author of teacher-mixed sampling; it must share the vocabulary. What is recorded is of the mixture.

    Raises:
        ModelError: a prompt has a token that a model has no embedding of, or a model's logits are not finite; the prompt is named.
    """
    models = [model] if mixed is None else [model, mixed.model]
    device = model.device
    for m in models:
        check_ids(m, [p for p, _ in batch])
    rows = [Generated(p, i, [], [], [], [], [], []) for p, i in batch]
    noise = np.stack([token_noise(sampling.seed, r.prompt.prompt.prompt_id, r.sample_index, sampling.max_completion_length) for r in rows])
    input_ids, attention = (x.to(device) for x in left_pad([r.prompt.ids for r in rows]))
    caches = [DynamicCache(config=m.config) for m in models]
    live, alive = list(range(len(rows))), torch.ones(len(rows), dtype=torch.bool)
    eos = torch.tensor(list(eos_ids), device=device)
    for t in range(sampling.max_completion_length):
        outs = [next_logits(m, input_ids, attention, c)[:, :vocab_size].float() for m, c in zip(models, caches, strict=True)]
        for out in outs:
            check_finite(out, [rows[i].prompt.prompt.prompt_id for i in live], alive)
        logits = outs[0] if mixed is None else _mixture(outs[0], outs[1], mixed.weight)
        tokens, candidates, logp, behaviour = _draw(logits, noise[live, t], sampling, candidate_top_p, max_candidates)
        for slot, row_index in enumerate(live):
            if alive[slot]:
                _append(rows[row_index], slot, tokens, candidates, logp, behaviour)
        ended = torch.isin(tokens, eos).cpu() & alive
        for slot in ended.nonzero().flatten().tolist():
            rows[live[slot]].finished = True
        alive &= ~ended
        if not alive.any():
            break
        input_ids = tokens.unsqueeze(-1)
        attention = torch.cat([attention, attention.new_ones(len(live), 1)], 1)
        if alive.float().mean() <= COMPACT_BELOW:
            keep = alive.nonzero().flatten()
            for c in caches:
                c.batch_select_indices(keep.to(device))
            input_ids, attention = input_ids[keep.to(device)], attention[keep.to(device)]
            live, alive = [live[i] for i in keep.tolist()], torch.ones(len(keep), dtype=torch.bool)
    return rows


def _mixture(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Return log(weight·softmax(second) + (1 − weight)·softmax(first)), which are logits of the mixture."""
    return torch.logaddexp(torch.log_softmax(second, -1) + math.log(weight), torch.log_softmax(first, -1) + math.log1p(-weight))


def _draw(
    logits: Tensor, noise: np.ndarray, sampling: Sampling, top_p: float | None, cap: int | None
) -> tuple[Tensor, Candidates | None, Tensor, Tensor]:
    """Return the tokens, the candidates, the tokens' true log-probs, and their log-probs under the distribution sampled from."""
    logp = torch.log_softmax(logits, -1)
    candidates = None if top_p is None else top_p_candidates(logp, top_p, cap)
    same = sampling.temperature == 1.0 and sampling.top_k == 0 and sampling.top_p == top_p and cap is None
    uniforms = torch.as_tensor(noise, device=logits.device)
    tokens, behaviour = sample_tokens(logits, uniforms, sampling.temperature, sampling.top_p, sampling.top_k, candidates if same else None)
    return tokens, candidates, logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), behaviour


def _append(row: Generated, slot: int, tokens: Tensor, candidates: Candidates | None, logp: Tensor, behaviour: Tensor) -> None:
    row.tokens.append(int(tokens[slot]))
    row.token_logp.append(float(logp[slot]))
    row.behaviour_logp.append(float(behaviour[slot]))
    if candidates is not None:
        count = int(candidates.legal[slot].sum())
        row.candidate_ids.append(candidates.ids[slot, :count].cpu().numpy())
        row.candidate_logp.append(candidates.logp[slot, :count].cpu().numpy())
        row.kept_mass.append(float(candidates.kept_mass[slot]))
