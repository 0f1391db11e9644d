"""Answer prompts with a causal LM of transformers, and score text with it: both record the same candidates and log-probs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tdistill.cache.schema import Response
from tdistill.data.prompts import TokenizedPrompt
from tdistill.mdp.candidates import Candidates, Ragged, top_p_candidates
from tdistill.models.forward import check_finite, next_logits, step_logp
from tdistill.models.layout import left_pad, pad_pairs
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import ActionSpace, Sampling
from tdistill.teachers.checks import check_ids, check_response
from tdistill.teachers.sampling import sample_tokens, token_noise

# Rows that have ended leave the batch once this share of it is done: dropping them costs a copy of the KV cache.
COMPACT_BELOW = 0.75


@dataclass(frozen=True)
class Mixed:
    """Set a second model that writes too: every token is drawn from weight·(its distribution) + (1 − weight)·(the first model's)."""

    model: PreTrainedModel
    weight: float


@torch.inference_mode()
def generate_batch(
    model: PreTrainedModel,
    batch: Sequence[tuple[TokenizedPrompt, int]],
    sampling: Sampling,
    vocabulary: Vocabulary,
    space: ActionSpace | None = None,
    mixed: Mixed | None = None,
) -> list[Response]:
    """Sample one response for every (prompt, sample index), left-padded, all at once.

    Args:
        model: a causal LM in eval mode.
        batch: what to answer.
        sampling: temperature, nucleus, top-k, length limit and seed.
        vocabulary: V, and the ids that end a response; each of them is its last token. Padding rows of the head are never sampled and
            carry no mass.
        space: the candidates to record for every token, at temperature 1 (None: none are).
        mixed: the second author of teacher-mixed sampling; it must share the vocabulary. What is recorded is of the mixture.

    Raises:
        ModelError: a prompt has a token that a model has no embedding of, or a model's logits are not finite; the prompt is named.
    """
    writing = _Writing([model] if mixed is None else [model, mixed.model], batch, sampling)
    eos = torch.tensor(list(vocabulary.eos_ids), device=model.device)
    for t in range(sampling.max_completion_length):
        logits = writing.logits(vocabulary.size)
        drawn = _draw(logits[0] if mixed is None else _mixture(logits[0], logits[1], mixed.weight), writing.noise(t), sampling, space)
        if not writing.append(drawn, torch.isin(drawn.tokens, eos)):
            break
    return [row.response(space is not None) for row in writing.rows]


@dataclass(frozen=True)
class _Drawn:
    """Hold one token for each of B rows."""

    tokens: Int[Tensor, " B"]
    logp: Float[Tensor, " B"]  # of the token, at temperature 1
    behaviour_logp: Float[Tensor, " B"]  # under the distribution sampled from
    candidates: Candidates | None


@dataclass
class _Row:
    """Hold a response as it grows."""

    prompt: TokenizedPrompt
    sample_index: int
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    behaviour_logp: list[float] = field(default_factory=list)
    candidates: list[Ragged] = field(default_factory=list)
    finished: bool = False

    def response(self, with_candidates: bool) -> Response:
        """Return the response."""
        found = Ragged.join(self.candidates) if with_candidates else None
        prompt = self.prompt
        about = (prompt.prompt.prompt_id, self.sample_index, prompt.ids, self.tokens, self.finished)
        return Response(*about, self.logp, self.behaviour_logp, found)


class _Writing:
    """Hold the rows of a batch, their KV caches, and which slot of the batch belongs to which row."""

    def __init__(self, models: Sequence[PreTrainedModel], batch: Sequence[tuple[TokenizedPrompt, int]], sampling: Sampling):
        for model in models:
            check_ids(model, [prompt for prompt, _ in batch])
        self.rows = [_Row(prompt, index) for prompt, index in batch]
        self._models = models
        length = sampling.max_completion_length
        self._noise = np.stack([token_noise(sampling.seed, r.prompt.prompt.prompt_id, r.sample_index, length) for r in self.rows])
        self._inputs, self._attention = (x.to(models[0].device) for x in left_pad([r.prompt.ids for r in self.rows]))
        self._caches = [DynamicCache(config=model.config) for model in models]
        self._live, self._alive = list(range(len(self.rows))), torch.ones(len(self.rows), dtype=torch.bool)

    def logits(self, vocab_size: int) -> list[Float[Tensor, "B V"]]:
        """Return the next logits of every model, in float32, over the tokens of the vocabulary."""
        found = []
        for model, cache in zip(self._models, self._caches, strict=True):
            found.append(next_logits(model, self._inputs, self._attention, cache)[:, :vocab_size].float())
            check_finite(found[-1], [self.rows[i].prompt.prompt.prompt_id for i in self._live], self._alive)
        return found

    def noise(self, t: int) -> Float[Tensor, " B"]:
        """Return the noise of the t-th token for every slot."""
        return torch.as_tensor(self._noise[self._live, t], device=self._inputs.device)

    def append(self, drawn: _Drawn, ends: Tensor) -> bool:
        """Append a token to every row that goes on, and return whether one still does."""
        tokens, logp, behaviour = drawn.tokens.tolist(), drawn.logp.tolist(), drawn.behaviour_logp.tolist()
        candidates = [] if drawn.candidates is None else drawn.candidates.to_ragged().split()
        ended = ends.cpu() & self._alive
        for slot in self._alive.nonzero().flatten().tolist():
            row = self.rows[self._live[slot]]
            row.tokens.append(tokens[slot])
            row.logp.append(logp[slot])
            row.behaviour_logp.append(behaviour[slot])
            row.candidates += candidates[slot : slot + 1]
            row.finished = bool(ended[slot])
        self._alive &= ~ended
        self._inputs = drawn.tokens.unsqueeze(-1)
        self._attention = torch.cat([self._attention, self._attention.new_ones(len(self._live), 1)], 1)
        if self._alive.any() and self._alive.float().mean() <= COMPACT_BELOW:
            self._compact()
        return bool(self._alive.any())

    def _compact(self) -> None:
        """Let the rows that have ended leave the batch."""
        keep = self._alive.nonzero().flatten()
        on_device = keep.to(self._inputs.device)
        for cache in self._caches:
            cache.batch_select_indices(on_device)
        self._inputs, self._attention = self._inputs[on_device], self._attention[on_device]
        self._live, self._alive = [self._live[i] for i in keep.tolist()], torch.ones(len(keep), dtype=torch.bool)


def _mixture(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Return log(weight·softmax(second) + (1 − weight)·softmax(first)), which are logits of the mixture."""
    return torch.logaddexp(torch.log_softmax(second, -1) + math.log(weight), torch.log_softmax(first, -1) + math.log1p(-weight))


def _draw(logits: Float[Tensor, "B V"], noise: Float[Tensor, " B"], sampling: Sampling, space: ActionSpace | None) -> _Drawn:
    logp = torch.log_softmax(logits, -1)
    candidates = None if space is None else top_p_candidates(logp, space.teacher_top_p, space.max_candidates)
    plain = sampling.temperature == 1.0 and sampling.top_k == 0
    same = plain and space is not None and sampling.top_p == space.teacher_top_p and space.max_candidates is None
    tokens, behaviour = sample_tokens(logits, noise, sampling, candidates if same else None)
    return _Drawn(tokens, logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), behaviour, candidates)


@torch.inference_mode()
def score_batch(
    model: PreTrainedModel, batch: Sequence[tuple[TokenizedPrompt, Sequence[int]]], vocabulary: Vocabulary, space: ActionSpace
) -> list[Response]:
    """Return candidates and true log-probs for given (prompt, response ids), as ``generate_batch`` would have recorded them.

    A response is finished when its last token is one of the ids that end one. ``behaviour_logp`` is None: nobody sampled it here.

    Raises:
        ModelError: a prompt or response has a token outside the vocabulary, or logits are not finite; the prompt is named.
    """
    check_ids(model, [prompt for prompt, _ in batch])
    for prompt, response in batch:
        check_response(prompt, response, vocabulary.size)
    padded = pad_pairs([p.ids for p, _ in batch], [r for _, r in batch])
    inputs, attention, taken, _ = (x.to(model.device) for x in padded)
    logp = step_logp(model, inputs, attention, taken.shape[1], vocabulary.size, [p.prompt.prompt_id for p, _ in batch])
    token_logp = logp.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
    return [_scored(pair, logp[i], token_logp[i], vocabulary, space) for i, pair in enumerate(batch)]


def _scored(
    pair: tuple[TokenizedPrompt, Iterable[int]],
    logp: Float[Tensor, "T V"],
    token_logp: Float[Tensor, " T"],
    vocabulary: Vocabulary,
    space: ActionSpace,
) -> Response:
    prompt, tokens = pair[0], [int(token) for token in pair[1]]
    return Response(
        prompt_id=prompt.prompt.prompt_id,
        sample_index=0,
        prompt_ids=prompt.ids,
        response_ids=tokens,
        finished=tokens[-1] in set(vocabulary.eos_ids),
        token_logp=token_logp[: len(tokens)].tolist(),
        behaviour_logp=None,
        candidates=top_p_candidates(logp[: len(tokens)], space.teacher_top_p, space.max_candidates).to_ragged(),
    )
