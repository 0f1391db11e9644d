"""Play out what follows a token: the student's own text after each of the teacher's likeliest tokens in a state, and its divergence there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.models.forward import check_finite, next_logits, step_logp
from tdistill.models.layout import pad_pairs
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import Sampling
from tdistill.teachers.sampling import sample_tokens, token_noise
from tdistill.teachers.transformers import generate_batch

ROWS_AT_ONCE = 256  # continuations in a batch
SCORED_AT_ONCE = 24  # of them in a batch with log-probs of the whole vocabulary

Costs = tuple[np.ndarray, np.ndarray]  # of a text, for each token: KL(q‖p) in its state, and log p of the token


@dataclass(frozen=True)
class State:
    """Hold a prefix of a text of the student's, and the tokens to try there."""

    prompt: int  # index of the prompt
    position: int  # tokens of the text before the state
    ids: tuple[int, ...]  # of the prompt and of the text up to here
    left: int  # tokens up to the length limit, the one to try included
    actions: np.ndarray  # [K] token ids
    probs: np.ndarray  # [K] the teacher's, renormalised over them
    mass: float  # of the teacher on them
    kl: float  # KL(q‖p) here
    student_probs: np.ndarray  # [K] the student's, over the whole vocabulary
    entropies: tuple[float, float]  # of the teacher and of the student here


@dataclass(frozen=True)
class OwnText:
    """Hold what is true of the student's texts as a whole."""

    mean_kl: float  # KL(q‖p) a token
    mean_logp: float  # the teacher's log-prob of a token
    mean_length: float  # tokens of a text


@dataclass(frozen=True)
class Setting:
    """Hold the models and settings that continuations are made with."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    eos_ids: tuple[int, ...]
    vocab: int
    length: int
    seed: int

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary of both models."""
        return Vocabulary(self.vocab, self.eos_ids)


def text_costs(setting: Setting, prompts: Sequence[tuple[int, ...]], texts: Sequence[list[int]]) -> list[Costs]:
    """Return for every text, for each token, KL(q‖p) in its state and log p of the token. Texts of like length are scored together."""
    found: list[Costs | None] = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for begin in range(0, len(order), SCORED_AT_ONCE):
        chunk = order[begin : begin + SCORED_AT_ONCE]
        for i, costs in zip(chunk, _costs_at_once(setting, [prompts[i] for i in chunk], [texts[i] for i in chunk]), strict=True):
            found[i] = costs
    return [costs for costs in found if costs is not None]


def _costs_at_once(setting: Setting, prompts: list[tuple[int, ...]], texts: list[list[int]]) -> list[Costs]:
    inputs, attention, taken, _ = pad_pairs(prompts, texts)
    logq, logp = (step_logp(m, inputs, attention, taken.shape[1], setting.vocab) for m in (setting.student, setting.teacher))
    likelihood = logp.gather(-1, taken.unsqueeze(-1)).squeeze(-1).double().numpy()
    kl = (logq.exp() * (logq - logp)).sum(-1).double().numpy()
    return [(kl[i, : len(t)], likelihood[i, : len(t)]) for i, t in enumerate(texts)]


def pick_states(setting: Setting, prompts: list[TokenizedPrompt], count: int, actions: int) -> tuple[list[State], OwnText]:
    """Return states of the student's own texts, drawn evenly from the tokens of all texts, and what is true of the texts as a whole."""
    sampling = Sampling(max_completion_length=setting.length, seed=setting.seed)
    texts = [r.response_ids for r in generate_batch(setting.student, [(p, 0) for p in prompts], sampling, setting.vocabulary)]
    costs = text_costs(setting, [p.ids for p in prompts], texts)
    places = [(i, t) for i, text in enumerate(texts) for t in range(len(text)) if t < setting.length - 1]
    rng = np.random.default_rng(setting.seed)
    chosen = [places[j] for j in rng.choice(len(places), size=min(count, len(places)), replace=False)]
    states = [_state(setting, i, t, (*prompts[i].ids, *texts[i][:t]), actions) for i, t in chosen]
    means = [float(np.concatenate([c[k] for c in costs]).mean()) for k in (0, 1)]
    return states, OwnText(*means, float(np.mean([len(t) for t in texts])))


def _state(setting: Setting, prompt: int, position: int, ids: tuple[int, ...], actions: int) -> State:
    logp, logq = (_next_logp(m, ids, setting.vocab) for m in (setting.teacher, setting.student))
    top = logp.topk(min(actions, setting.vocab))
    probs = top.values.exp().numpy()
    return State(
        prompt=prompt,
        position=position,
        ids=ids,
        left=setting.length - position,
        actions=top.indices.numpy(),
        probs=probs / probs.sum(),
        mass=float(probs.sum()),
        kl=float((logq.exp() * (logq - logp)).sum()),
        student_probs=logq[top.indices].exp().numpy(),
        entropies=(_entropy(logp), _entropy(logq)),
    )


def _entropy(logp: Tensor) -> float:
    return float(torch.special.entr(logp.exp()).sum())


def _next_logp(model: PreTrainedModel, ids: tuple[int, ...], vocab: int) -> Tensor:
    inputs = torch.tensor([ids])
    return step_logp(model, inputs, torch.ones_like(inputs), 1, vocab)[0, 0].double()


def futures(setting: Setting, state: State, number: int, samples: int) -> list[list[Costs]]:
    """Return action → sample → (KL, log p) for each token of what follows it; empty after the end of the text."""
    live = [k for k, a in enumerate(state.actions) if int(a) not in setting.eos_ids]
    plan = [(k, i) for k in live for i in range(samples)]
    found: list[list[Costs]] = [[] for _ in state.actions]
    for begin in range(0, len(plan), ROWS_AT_ONCE):
        chunk = plan[begin : begin + ROWS_AT_ONCE]
        # The noise goes by action and sample: every roll-out meets noise of its own.
        noise = np.stack([token_noise(setting.seed + 1, f"{number}-{k}", i, state.left - 1) for k, i in chunk])
        played = _played(setting, state.ids, torch.tensor([int(state.actions[k]) for k, _ in chunk]), torch.from_numpy(noise))
        for (k, _), costs in zip(chunk, played, strict=True):
            found[k].append(costs)
    nothing = (np.zeros(0), np.zeros(0))
    return [f or [nothing] * samples for f in found]


@torch.inference_mode()
def _played(setting: Setting, prefix: tuple[int, ...], tokens: Tensor, noise: Tensor) -> list[Costs]:
    """Let the student go on from a prefix and each of ``tokens`` [N], drawing by ``noise`` [N, T]. Both models read the prefix once."""
    models, ids, sampling = (setting.student, setting.teacher), torch.tensor([prefix]), Sampling()
    caches = [DynamicCache(config=model.config) for model in models]
    for model, cache in zip(models, caches, strict=True):
        next_logits(model, ids, torch.ones_like(ids), cache)
        cache.batch_repeat_interleave(len(tokens))
    costs: list[tuple[list[float], list[float]]] = [([], []) for _ in tokens]
    going, eos = torch.arange(len(tokens)), torch.tensor(setting.eos_ids)
    for t in range(noise.shape[1]):
        read = torch.ones(len(going), len(prefix) + t + 1, dtype=torch.long)
        both = zip(models, caches, strict=True)
        logits = [next_logits(m, tokens.unsqueeze(-1), read, cache)[:, : setting.vocab].float() for m, cache in both]
        for found in logits:
            check_finite(found, [], torch.ones(len(going), dtype=torch.bool))
        tokens, _ = sample_tokens(logits[0], noise[going, t], sampling)
        logq, logp = (torch.log_softmax(found, -1) for found in logits)
        kl = (logq.exp() * (logq - logp)).sum(-1)
        for row, *values in zip(going.tolist(), kl.tolist(), logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist(), strict=True):
            for column, value in zip(costs[row], values, strict=True):
                column.append(value)
        goes_on = (~torch.isin(tokens, eos)).nonzero().flatten()
        if len(goes_on) == 0:
            break
        if len(goes_on) < len(going):
            for cache in caches:
                cache.batch_select_indices(goes_on)
            going, tokens = going[goes_on], tokens[goes_on]
    return [(np.array(kl), np.array(logp)) for kl, logp in costs]
