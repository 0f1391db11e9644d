"""Slow truth for the objectives that look several steps ahead: float64 scalars, one loop per recursion, as in ``oracles``.

Nothing here imports tdistill.
"""

import math
from dataclasses import dataclass

import oracles
import oracles_divergences
import torch
from oracles import Response
from torch import Tensor


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass
class TdStep:
    """One step; ``q``, ``reward`` and ``error`` are None where the step contributes nothing."""

    loss: Tensor
    v: Tensor
    q: Tensor | None = None
    reward: float | None = None
    error: Tensor | None = None
    window: int | None = None


def state_value(response: Response, t: int, gauge: str) -> Tensor:
    """V_p(s_t); 0 after EOS."""
    if t == len(response):
        return zero()
    return oracles.log_sum_exp([response.logits[t][a] for a in response.candidates[t]]) - oracles.gauge_shift(response, t, gauge)


def reward(response: Response, t: int) -> float:
    """log proj_p π*(a_t)."""
    mass = math.fsum(math.exp(response.teacher[t][a]) for a in response.candidates[t])
    return response.teacher[t][response.tokens[t]] - math.log(mass)


def counts(response: Response, t: int) -> bool:
    """The token is a candidate, and the step has a successor: a state, or the end."""
    return response.tokens[t] in response.candidates[t] and (t + 1 < len(response) or response.finished)


def ratios(response: Response, behaviour: list[float], rho_max: float) -> list[float]:
    """min(rho_max, π(a_t)/behaviour(a_t)) over the whole vocabulary, with 1 where nobody sampled the token."""
    exact = [
        1.0 if math.isnan(mu) else math.exp(min(-nll.item() - mu, 700.0))
        for nll, mu in zip(oracles.taken_nll(response), behaviour, strict=True)
    ]
    return [min(rho_max, ratio) for ratio in exact]


def td_weights(response: Response, rho_max: float | None) -> list[float]:
    """Of each step's loss; 1 with ``rho_max`` None."""
    return [1.0] * len(response) if rho_max is None else ratios(response, response.behaviour, rho_max)


def td_steps(response: Response, gamma: float, gauge: str, anchor: str, anchor_weight: float) -> list[TdStep]:
    """All but the loss of each step, which has the anchor alone so far."""
    steps = []
    for t, token in enumerate(response.tokens):
        step = TdStep(loss=anchor_weight * oracles.anchor_term(response, t, anchor), v=state_value(response, t, gauge))
        if counts(response, t):
            step.q = response.logits[t][token] - oracles.gauge_shift(response, t, gauge)
            step.reward = reward(response, t)
            step.error = step.q - step.reward - gamma * state_value(response, t + 1, gauge)
        steps.append(step)
    return steps


def csil(
    response: Response,
    *,
    gamma: float,
    gauge: str = "learned",
    stop_target: bool = True,
    anchor: str = "none",
    anchor_weight: float = 1.0,
    target_network: Response | None = None,
    rho_max: float | None = None,
) -> list[TdStep]:
    """ρ·½(Q − (r + γV'))², with or without gradient through the target."""
    steps, rho = td_steps(response, gamma, gauge, anchor, anchor_weight), td_weights(response, rho_max)
    for t, step in enumerate(steps):
        if step.q is not None and step.reward is not None:
            target = step.reward + gamma * state_value(target_network or response, t + 1, gauge)
            step.loss = step.loss + rho[t] * 0.5 * (step.q - (target.detach() if stop_target else target)) ** 2
    return steps


def q_lambda(
    response: Response,
    *,
    gamma: float,
    lambda_: float,
    gauge: str = "learned",
    stop_target: bool = True,
    anchor: str = "none",
    anchor_weight: float = 1.0,
    target_network: Response | None = None,
    rho_max: float | None = None,
) -> list[TdStep]:
    """ρ·½(Q − G)², G from its recursion, cut where the next step doesn't count."""
    steps, later = td_steps(response, gamma, gauge, anchor, anchor_weight), target_network or response
    rho = td_weights(response, rho_max)
    later_q = [step.q for step in td_steps(later, gamma, gauge, "none", 0.0)]

    def target(t: int) -> Tensor:
        ahead = state_value(later, t + 1, gauge)
        following = later_q[t + 1] if t + 1 < len(response) else None
        if following is not None:
            ahead = ahead + lambda_ * rho[t + 1] * (target(t + 1) - following)
        return steps[t].reward + gamma * ahead

    for t, step in enumerate(steps):
        if step.q is not None:
            g = target(t)
            step.loss = step.loss + rho[t] * 0.5 * (step.q - (g.detach() if stop_target else g)) ** 2
    return steps


def path_consistency(
    response: Response,
    *,
    gamma: float,
    lambda_: float,
    max_n: int | None = None,
    gauge: str = "learned",
    anchor: str = "none",
    anchor_weight: float = 1.0,
) -> list[TdStep]:
    """(1−λ)Σ_{n<N} λ^{n−1} ½δ²_{t,n} + λ^{N−1} ½δ²_{t,N}, each δ from its definition."""
    steps = td_steps(response, gamma, gauge, anchor, anchor_weight)
    for t, step in enumerate(steps):
        longest = 0
        while t + longest < len(response) and counts(response, t + longest) and (max_n is None or longest < max_n):
            longest += 1
        for n in range(1, longest + 1):
            delta = state_value(response, t, gauge) - gamma**n * state_value(response, t + n, gauge)
            for k in range(n):
                delta = delta + gamma**k * (-oracles.proj_nll(response, t + k) - reward(response, t + k))
            weight = lambda_ ** (n - 1) * (1.0 if n == longest else 1 - lambda_)
            step.loss = step.loss + weight * 0.5 * delta**2
        step.window = longest or None
    return steps


@dataclass
class CriticStep:
    """One step of the actor-critic; ``rho`` and ``advantage`` are None where the step has no successor."""

    loss: Tensor
    kl: Tensor
    rho: float | None = None
    advantage: float | None = None


COSTS = {
    "reverse_kl": oracles.reverse_kl,
    "jsd": oracles_divergences.per_step(oracles_divergences.jsd, beta=0.5),
    "skew_kl": oracles_divergences.per_step(oracles_divergences.skew_kl, skew=0.1),
}


def actor_critic(
    response: Response,
    behaviour: list[float],
    *,
    gamma: float,
    lambda_: float = 1.0,
    rho_max: float = 1.0,
    value_coef: float = 0.5,
    center: float = 1.0,
    cost: str = "reverse_kl",
    support: str = "tail",
) -> list[CriticStep]:
    """D − γρ(Ĝ_{t+1} − u)log π(a) + value_coef·½(u − û)², where Ĝ and û are plain numbers."""
    divergence = COSTS[cost](response, support=support)
    nll, n = oracles.taken_nll(response), len(response)
    level = center * sum(d.item() for d in divergence) / n
    acts = [t + 1 < n or response.finished for t in range(n)]
    rho = ratios(response, behaviour, rho_max)

    def value_return(t: int) -> float:
        """Ĝ_t; 0 after EOS."""
        if t == n:
            return 0.0
        u = response.value[t].item()
        excess = lambda_ * rho[t] * (value_return(t + 1) - u) if acts[t] else 0.0
        return level - divergence[t].item() + gamma * (u + excess)

    steps = []
    for t in range(n):
        step = CriticStep(loss=divergence[t], kl=divergence[t])
        if acts[t]:
            u = response.value[t]
            step.rho, step.advantage = rho[t], value_return(t + 1) - u.item()
            target = u.item() + rho[t] * step.advantage
            step.loss = step.loss + gamma * rho[t] * step.advantage * nll[t] + value_coef * 0.5 * (u - target) ** 2
        steps.append(step)
    return steps


@dataclass
class MeanStep:
    """One step; ``target`` is None where the critic learns nothing."""

    loss: Tensor
    cost: Tensor
    mean: float
    target: float | None = None
    trace: float | None = None


def mean_actor_critic(
    response: Response,
    behaviour: list[float],
    *,
    gamma: float,
    lambda_: float = 0.95,
    value_coef: float = 0.5,
    center: float = 1.0,
    cost: str = "reverse_kl",
    support: str = "tail",
) -> list[MeanStep]:
    """D − γ Σ_{A_p} π(a)(w(a) − w̄) + value_coef·½(w(a_t) − Ĝ_{t+1})², where w, w̄ and Ĝ in the first term and the target are plain numbers."""
    divergence = COSTS[cost](response, support=support)
    rho, n = ratios(response, behaviour, 1.0), len(response)
    level = center * sum(d.item() for d in divergence) / n
    plain = [[w.item() for w in row] for row in response.action_value]

    def mean(t: int) -> float:
        """w̄_t under the student's projection."""
        odds = {a: math.exp(response.logits[t][a].item()) for a in response.candidates[t]}
        return sum(odds[a] * plain[t][a] for a in odds) / sum(odds.values())

    def trace(t: int) -> float:
        if not counts(response, t):
            return 0.0
        return lambda_ * rho[t]

    def value_return(t: int) -> float:
        """Ĝ_t; 0 after EOS."""
        if t == n:
            return 0.0
        excess = trace(t) * (value_return(t + 1) - plain[t][response.tokens[t]]) if trace(t) else 0.0
        return level - divergence[t].item() + gamma * (mean(t) + excess)

    steps = []
    for t in range(n):
        step = MeanStep(loss=divergence[t], cost=divergence[t], mean=mean(t))
        log_z = oracles.log_sum_exp(response.logits[t])
        for a in response.candidates[t]:
            step.loss = step.loss - gamma * (response.logits[t][a] - log_z).exp() * (plain[t][a] - step.mean)
        if counts(response, t):
            step.target, step.trace = value_return(t + 1), trace(t)
            step.loss = step.loss + value_coef * 0.5 * (response.action_value[t][response.tokens[t]] - step.target) ** 2
        steps.append(step)
    return steps
