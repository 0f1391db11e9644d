"""Slow truth of the divergences beyond KL: sums over probabilities, term by term, as the papers write them."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import oracles
import torch
from torch import Tensor

Divergence = Callable[..., Tensor]


def per_step(divergence: Divergence, **arguments: Any) -> Callable[..., list[Tensor]]:
    """An oracle of a response: the divergence of (teacher, student) as probabilities at each step."""

    def oracle(response: oracles.Response, *, support: str = "tail", loss_temperature: float = 1.0) -> list[Tensor]:
        pairs = [oracles.teacher_and_student(response, t, support, loss_temperature) for t in range(len(response))]
        return [divergence([torch.exp(x) for x in p], [torch.exp(x) for x in q], **arguments) for p, q in pairs]

    return oracle


def total(terms: list[Tensor]) -> Tensor:
    out = torch.zeros((), dtype=torch.float64)
    for term in terms:
        out = out + term
    return out


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """Σ p log(p/q), 0·log 0 = 0."""
    return total([a * torch.log(a / b) for a, b in zip(p, q, strict=True) if a.item() > 0])


def mix(p: list[Tensor], q: list[Tensor], share: float) -> list[Tensor]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def jsd(p: list[Tensor], q: list[Tensor], beta: float) -> Tensor:
    """β KL(p‖M) + (1−β) KL(q‖M), M = βp + (1−β)q; KL(p‖q) at 0 and KL(q‖p) at 1."""
    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    m = mix(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew_kl(p: list[Tensor], q: list[Tensor], skew: float) -> Tensor:
    """KL(p‖λp + (1−λ)q)."""
    return kl(p, mix(p, q, skew))


def skew_rkl(p: list[Tensor], q: list[Tensor], skew: float) -> Tensor:
    """KL(q‖(1−λ)p + λq)."""
    return kl(q, mix(q, p, skew))


def tvd(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """½ Σ |p − q|."""
    return total([abs(a - b) / 2 for a, b in zip(p, q, strict=True)])


def alpha_beta(p: list[Tensor], q: list[Tensor], alpha: float, beta: float) -> Tensor:
    """The five cases of the α-β-divergence (Cichocki, Cruces & Amari 2011), q > 0 and p > 0 or a positive exponent on it."""
    return total([alpha_beta_term(a, b, alpha, beta) for a, b in zip(p, q, strict=True)])


def alpha_beta_term(p: Tensor, q: Tensor, alpha: float, beta: float) -> Tensor:
    if alpha == 0 and beta == 0:
        return torch.log(p / q) ** 2 / 2
    if beta == 0:
        head = p**alpha * torch.log((p / q) ** alpha) if p.item() > 0 else 0.0
        return (head - p**alpha + q**alpha) / alpha**2
    if alpha == 0:
        return alpha_beta_term(q, p, beta, 0)
    if alpha + beta == 0:
        return (torch.log((q / p) ** alpha) + (p / q) ** alpha - 1) / alpha**2
    s = alpha + beta
    return -(p**alpha * q**beta - alpha / s * p**s - beta / s * q**s) / (alpha * beta)


def alpha_beta_by_decimals(log_p: list[float], log_q: list[float], alpha: float, beta: float) -> float:
    """The equation itself with 80 digits, which no cancellation near a singular line can hurt."""
    assert alpha * beta * (alpha + beta) != 0
    with localcontext() as context:
        context.prec = 80
        a, b, sum_ = Decimal(alpha), Decimal(beta), Decimal(0)
        for x, y in zip(map(Decimal, log_p), map(Decimal, log_q), strict=True):
            s = a + b
            sum_ += (a * x + b * y).exp() - a / s * (s * x).exp() - b / s * (s * y).exp()
        return float(-sum_ / (a * b))


def entropy(share: float) -> float:
    """Of a coin, in nats."""
    return -share * math.log(share) - (1 - share) * math.log(1 - share)
