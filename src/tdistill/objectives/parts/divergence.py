"""Compute the divergences of two distributions that are given by their log-probs over the legal slots, with hand-written derivatives."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SKEW = 0.1  # the share that skew divergences mix in, as published (Ko et al. 2024)
DivergenceName = Literal["reverse_kl", "jsd", "skew_kl"]


def divergence(p: Float[Tensor, "*B J"], q: Float[Tensor, "*B J"], legal: Bool[Tensor, "*B J"], cost: DivergenceName) -> Float[Tensor, "*B"]:
    """Return the divergence of teacher p and student q that ``cost`` names, at its default arguments."""
    if cost == "jsd":
        return jensen_shannon(p, q, legal)
    return kl(q, p, legal) if cost == "reverse_kl" else kl(p, q, legal, SKEW)


def kl(p: Float[Tensor, "*B J"], q: Float[Tensor, "*B J"], legal: Bool[Tensor, "*B J"], skew: float = 0.0) -> Float[Tensor, "*B"]:
    """Return KL(p‖m) = Σ p·(log p − log m) over legal slots, from log-probs.

    m = λp + (1−λ)q with λ = ``skew`` in [0, 1); at 0 it is q. A slot to which p gives 0 contributes 0.

    Examples:
        >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> kl(p, q, torch.tensor([[True, True]]))
        tensor([0.1438])
    """
    return _Divergence.apply(p, q, legal, skew)


class _Divergence(torch.autograd.Function):
    """Compute ``kl`` with its derivatives written out.

    By log p it is p·(log p − log m) + p·s, by log q it is −p·s, with s = (1−λ)q/m, which is 1 at λ = 0. It keeps one tensor for each of the
    two that needs a gradient: over a vocabulary the memory counts.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, legal: Tensor, skew: float) -> Tensor:
        weight = p.exp().masked_fill_(~legal, 0.0)
        empty = weight == 0.0
        if skew:
            other = q.exp() * (1.0 - skew)
            mixture = (weight * skew).add_(other).clamp_(min=torch.finfo(p.dtype).tiny)  # it may underflow where p does not
            gap, moved = p - mixture.log(), other.div_(mixture).mul_(weight).masked_fill_(empty, 0.0)
        else:
            gap, moved = p - q, weight
        paid = gap.masked_fill_(empty, 0.0).mul_(weight)
        ctx.save_for_backward(paid + moved if ctx.needs_input_grad[0] else None, moved if ctx.needs_input_grad[1] else None)
        return paid.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (by_p, by_q) = grads[0].unsqueeze(-1), ctx.saved_tensors
        return None if by_p is None else by_p * grad, None if by_q is None else by_q * -grad, None, None


def jensen_shannon(p: Float[Tensor, "*B J"], q: Float[Tensor, "*B J"], legal: Bool[Tensor, "*B J"], beta: float = 0.5) -> Float[Tensor, "*B"]:
    """Return β·KL(p‖M) + (1−β)·KL(q‖M), M = β·p + (1−β)·q, from log-probs over legal slots. β = 0 gives KL(p‖q), β = 1 KL(q‖p)."""
    if beta in (0.0, 1.0):
        return kl(q, p, legal) if beta else kl(p, q, legal)
    return _JensenShannon.apply(p, q, legal, beta)


class _JensenShannon(torch.autograd.Function):
    """Compute ``jensen_shannon`` with its derivatives written out.

    By log p and log q they are the two summands themselves, β·p·log(p/M) and (1−β)·q·log(q/M): the terms in ∂M cancel. It keeps one tensor for
    each of the two that needs a gradient.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, legal: Tensor, beta: float) -> Tensor:
        weights = [(x.exp() * share).masked_fill_(~legal, 0.0) for x, share in ((p, beta), (q, 1.0 - beta))]
        log_m = (weights[0] + weights[1]).log_()
        by_p, by_q = ((x - log_m).masked_fill_(w == 0.0, 0.0).mul_(w) for x, w in zip((p, q), weights, strict=True))
        ctx.save_for_backward(*(by if needed else None for by, needed in zip((by_p, by_q), ctx.needs_input_grad, strict=False)))
        return (by_p + by_q).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if by is None else by * grads[0].unsqueeze(-1) for by in ctx.saved_tensors), None, None
