"""Compute the projection, the soft value, the λ-return and the bound κ(p) on the top-p action space."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdistill.runtime.errors import ConfigError


def project(logits: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Return the log of the projection onto A_p:  log proj_p π(a|s) = x(a) − log Σ_{b∈A_p} exp x(b),  −inf off A_p.

    x may be logits or true log-probs: a constant added to x changes nothing. A state without candidates gives −inf everywhere, and zero
    gradient.

    Examples:
        Of four tokens with probabilities .5, .3, .15, .05 the first two are kept:

        >>> logp = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        >>> project(logp, torch.tensor([True, True, False, False])).exp()
        tensor([0.6250, 0.3750, 0.0000, 0.0000])
    """
    return masked(logits, legal) - soft_value(logits, legal).unsqueeze(-1)


def soft_value(q: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Return V_p(s) = log Σ_{a∈A_p(s)} exp Q(s,a)   (= E_{a~proj_p π}[Q − log proj_p π]).

    It is 0 where a state has no candidates. Masked slots get exactly zero gradient.

    Examples:
        exp Q = 1, 2 and 5; the last action is not in A_p:

        >>> soft_value(torch.tensor([1.0, 2.0, 5.0]).log(), torch.tensor([True, True, False])).exp()
        tensor(3.)
    """
    exists = legal.any(-1)
    # A row of −inf would give NaN gradients: such rows compute on zeros and are overwritten.
    safe = torch.where(exists.unsqueeze(-1), masked(q, legal), torch.zeros_like(q))
    return torch.where(exists, safe.logsumexp(-1), torch.zeros_like(safe[..., 0]))


def masked(x: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
    """Return x on A_p, −inf elsewhere."""
    return x.masked_fill(~legal, -torch.inf)


def log_tail(log_m: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return log(1 − m) from log m. The mass 1 − m is at least the dtype's epsilon."""
    return (-torch.expm1(log_m)).clamp(min=torch.finfo(log_m.dtype).eps).log()


def expectation(logp: Float[Tensor, "*B K"], x: Float[Tensor, "*B K"], legal: Bool[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """Return Σ_{a∈A_p} exp(logp(a))·x(a). Slots off A_p give exactly 0, whatever they hold."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return (torch.where(legal, logp, -torch.inf).exp() * torch.where(legal, x, zero)).sum(-1)


def take(x: Float[Tensor, "*B K"], a: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return x(a) along the last axis. It is 0 where a = −1: the token taken is no candidate.

    Examples:
        >>> take(torch.tensor([[4.0, 7.0], [1.0, 2.0]]), torch.tensor([1, -1]))
        tensor([7., 0.])
    """
    taken = x.gather(-1, a.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(a >= 0, taken, torch.zeros_like(taken))


def lambda_return(
    reward_t: Float[Tensor, "B T"],
    discount_t: Float[Tensor, "B T"],
    value_t: Float[Tensor, "B T"],
    baseline_t: Float[Tensor, "B T"],
    trace_t: Float[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Compute G_t = r_t + γ_t[v_t + c_t(G_{t+1} − b_t)] backwards, with G = 0 past the last step.

    v is the value of what follows the reward. c (λ times a ratio, or 0 where the trace is cut) is the share of G_{t+1} − b_t, the excess of the
    return over the baseline, that is added to it. With v = b, c = 0 is the one-step return and c = 1 the sum of all rewards.

    Examples:
        Three rewards of 1, γ = .5, values 0: without a trace each step has its own reward, with a whole trace the discounted sum.

        >>> reward, discount, zero = torch.ones(1, 3), torch.full((1, 3), 0.5), torch.zeros(1, 3)
        >>> lambda_return(reward, discount, zero, zero, trace_t=zero)
        tensor([[1., 1., 1.]])
        >>> lambda_return(reward, discount, zero, zero, trace_t=torch.ones(1, 3))
        tensor([[1.7500, 1.5000, 1.0000]])
    """
    following = torch.zeros_like(reward_t[:, 0])
    returns = []
    backwards = (reversed(x.unbind(1)) for x in (reward_t, discount_t, value_t, baseline_t, trace_t))
    for reward, discount, value, baseline, trace in zip(*backwards, strict=True):
        following = reward + discount * (value + trace * (following - baseline))
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def kappa(p: float, gamma: float) -> float:
    """Return κ(p) = −γ/(1−γ)·log p: the largest possible cost of restricting the actions to A_p (Yu et al. 2026, Prop. 4), in nats.

    Examples:
        >>> round(kappa(0.95, gamma=0.99), 3)
        5.078

    Raises:
        ConfigError: p outside (0, 1], γ outside [0, 1), where the bound does not exist.
    """
    if not 0.0 < p <= 1.0:
        raise ConfigError(f"κ(p) needs p in (0, 1], got {p}.")
    if not 0.0 <= gamma < 1.0:
        raise ConfigError(f"κ(p) needs gamma in [0, 1), got {gamma}: at gamma=1 the bound is infinite.")
    return gamma / (1.0 - gamma) * math.log(1.0 / p)
