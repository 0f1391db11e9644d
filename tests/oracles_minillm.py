"""Slow truth for ``minillm``: float64 scalars, one plain loop over the later tokens, as in ``oracles``.

Nothing here imports tdistill.
"""

import math
from dataclasses import dataclass

import oracles
import torch
from oracles import Response
from torch import Tensor


@dataclass
class PolicyStep:
    """One step; ``later`` (the return after it) and ``clipped`` are None where nothing follows."""

    loss: Tensor
    reward: float
    weight: float
    later: float | None = None
    clipped: bool | None = None


def rewards(response: Response, reward_clip: float | None = None) -> list[float]:
    """log p(a_t) − log π(a_t), both over the vocabulary."""
    nll = oracles.nll(response)
    gaps = [row[a] + cost.item() for row, a, cost in zip(response.teacher, response.tokens, nll, strict=True)]
    return gaps if reward_clip is None else [max(-reward_clip, min(reward_clip, gap)) for gap in gaps]


def later_return(reward: list[float], t: int, gamma: float, length_normalization: bool) -> float:
    """Σ_{t'>t} γ^{t'−t−1} r_{t'}, or the mean of these terms; 0 if there are none."""
    terms = [gamma ** (later - t - 1) * reward[later] for later in range(t + 1, len(reward))]
    return math.fsum(terms) / (max(len(terms), 1) if length_normalization else 1)


def minillm(
    response: Response,
    behaviour: list[float],
    *,
    gamma: float = 1.0,
    length_normalization: bool = True,
    clip_epsilon: float = 0.2,
    reward_clip: float | None = None,
    w_max: float = math.inf,
    support: str = "tail",
) -> list[PolicyStep]:
    """w·KL − γ·PPO(w, R), where w and R are plain numbers and a clipped term is a constant."""
    divergence, nll, reward = oracles.reverse_kl(response, support=support), oracles.nll(response), rewards(response, reward_clip)
    steps = []
    for t, mu in enumerate(behaviour):
        log_pi = -nll[t]
        weight = min(w_max, 1.0 if math.isnan(mu) else math.exp(min(log_pi.item() - mu, 700.0)))
        step = PolicyStep(loss=weight * divergence[t], reward=reward[t], weight=weight)
        if t + 1 < len(response):
            step.later = later_return(reward, t, gamma, length_normalization)
            too_high, too_low = step.later > 0 and weight > 1 + clip_epsilon, step.later < 0 and weight < 1 - clip_epsilon
            step.clipped = too_high or too_low
            if step.clipped:
                surrogate = torch.tensor((1 + clip_epsilon if too_high else 1 - clip_epsilon) * step.later, dtype=torch.float64)
            else:
                surrogate = weight * step.later * torch.exp(log_pi - log_pi.item())
            step.loss = step.loss - gamma * surrogate
        steps.append(step)
    return steps
