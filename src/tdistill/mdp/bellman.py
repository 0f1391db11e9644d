"""Compute projection, soft value, soft Bellman error, λ-return and the bound κ(p) on the top-p action space."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.runtime.errors import ConfigError


def project(logits: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Return the log of the projection onto A_p:  log proj_p π(a|s) = x(a) − log Σ_{b∈A_p} exp x(b),  −inf off A_p.

    Works on logits and on true log-probs alike (the projection forgets a constant). A state without candidates gives
    −inf everywhere and zero gradient.
    """
    return masked(logits, legal) - soft_value(logits, legal).unsqueeze(-1)


def soft_value(q: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Return V_p(s) = log Σ_{a∈A_p(s)} exp Q(s,a)   (= E_{a~proj_p π}[Q − log proj_p π]).

    0 where a state has no candidates, as for a terminal state; masked slots get exactly zero gradient.
    """
    exists = legal.any(-1)
    # A row of −inf would give NaN gradients: such rows compute on zeros and are overwritten.
    safe = torch.where(exists.unsqueeze(-1), masked(q, legal), torch.zeros_like(q))
    return torch.where(exists, safe.logsumexp(-1), torch.zeros_like(safe[..., 0]))


def masked(x: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Return x on A_p, −inf elsewhere."""
    return x.masked_fill(~legal, -torch.inf)


def log_tail(log_m: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return log(1 − m) from log m, floored at the mass that the dtype can still tell from 0."""
    return (-torch.expm1(log_m)).clamp(min=torch.finfo(log_m.dtype).eps).log()


def expectation(logp: Float[Tensor, "*B K"], x: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Return Σ_{a∈A_p} exp(logp(a))·x(a); slots off A_p give exactly 0 whatever they hold."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return (torch.where(legal, logp, -torch.inf).exp() * torch.where(legal, x, zero)).sum(-1)


def take(x: Float[Tensor, "*B K"], a: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return x(a) along the last axis; 0 where a = −1 (the token taken is no candidate)."""
    taken = x.gather(-1, a.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(a >= 0, taken, torch.zeros_like(taken))


def next_value(v_t: Float[Tensor, "B T"], terminal_t: Bool[Tensor, "B T"], terminal_value: float = 0.0) -> Float[Tensor, "B T"]:
    """Return V_p(s_{t+1}): the value one step later, ``terminal_value`` where the step ended the response, 0 past the end."""
    v_tp1 = torch.cat([v_t[:, 1:], torch.zeros_like(v_t[:, :1])], dim=1)
    return torch.where(terminal_t, torch.full_like(v_tp1, terminal_value), v_tp1)


def has_successor(exists_t: Bool[Tensor, "B T"], terminal_t: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Tell which steps have a successor: the step ended the response, or the next state exists. The last step of a cut-off has none."""
    exists_tp1 = torch.cat([exists_t[:, 1:], torch.zeros_like(exists_t[:, :1])], dim=1)
    return terminal_t | exists_tp1


def bellman_error(q_t: Float[Tensor, "*#B"], v_tp1: Float[Tensor, "*#B"], gamma: float) -> Float[Tensor, "*B"]:
    """Return r_t = Q(s_t,a_t) − γ V_p(s_{t+1}): the soft Bellman error, which is the reward that Q implies (inverse Bellman operator)."""
    return q_t - gamma * v_tp1


def lambda_return(
    reward_t: Float[Tensor, "B T"],
    value_t: Float[Tensor, "B T"],
    baseline_t: Float[Tensor, "B T"],
    trace_t: Float[Tensor, "B T"],
    gamma: float,
) -> Float[Tensor, "B T"]:
    """Compute G_t = r_t + γ[v_t + c_t(G_{t+1} − b_t)] backwards, with G = 0 past the last step.

    v bootstraps what follows the reward, and c (λ times a ratio, or 0 where the trace is cut) says how much of the return's excess
    over b replaces it. With v = b the value of the next state, c = 0 is one step and c = 1 the sum of all rewards.
    """
    following = torch.zeros_like(reward_t[:, 0])
    returns = []
    for reward, value, baseline, trace in zip(*(reversed(x.unbind(1)) for x in (reward_t, value_t, baseline_t, trace_t)), strict=True):
        following = reward + gamma * (value + trace * (following - baseline))
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def kappa(p: float, gamma: float) -> float:
    """Return κ(p) = −γ/(1−γ)·log p: the largest possible cost of restricting the actions to A_p (Yu et al. 2026, Prop. 4), in nats.

    Raises:
        ConfigError: p outside (0, 1], γ outside [0, 1), where the bound does not exist.
    """
    if not 0.0 < p <= 1.0:
        raise ConfigError(f"κ(p) needs p in (0, 1], got {p}.")
    if not 0.0 <= gamma < 1.0:
        raise ConfigError(f"κ(p) needs gamma in [0, 1), got {gamma}: at gamma=1 the bound is infinite.")
    return gamma / (1.0 - gamma) * math.log(1.0 / p)
