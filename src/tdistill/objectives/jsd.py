"""Compute the generalised Jensen-Shannon divergence, which lies between forward and reverse KL and is bounded between them."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.support import Support, check_temperature, distributions, kl, support_needs
from tdistill.runtime.errors import ConfigError


def jsd(steps: Steps, *, beta: Finite = 0.5, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """loss_t = β·KL(p‖M) + (1−β)·KL(q‖M),  M = β·p + (1−β)·q, p the teacher, q the student (Agarwal et al. 2024, GKD).

    β = 0 is KL(p‖q) and β = 1 is KL(q‖p), as TRL's GKD trainer has it: the limits of loss/β and of loss/(1−β), since the
    equation itself gives 0 there. In between the loss is at most the entropy of (β, 1−β).

    Args:
        beta: the teacher's share of M, in [0, 1]; the default is TRL's.
        support: as for ``forward_kl``; ``tail`` is a lower bound of ``dense``.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    return ObjectiveOutput(jensen_shannon(*distributions(steps, support, loss_temperature), beta))


def jensen_shannon(p: Float[Tensor, "*B J"], q: Float[Tensor, "*B J"], legal: Bool[Tensor, "*B J"], beta: float = 0.5) -> Float[Tensor, "*B"]:
    """Return the equation of ``jsd`` on log-probs over legal slots."""
    if beta in (0.0, 1.0):
        return kl(q, p, legal) if beta else kl(p, q, legal)
    return _JensenShannon.apply(p, q, legal, beta)


class _JensenShannon(torch.autograd.Function):
    """Compute ``jensen_shannon`` with its derivatives written out. By log p and log q they are its own two summands, β·p·log(p/M) and
    (1−β)·q·log(q/M): what M moves cancels. For each that needs a gradient it keeps one tensor.
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


def _check(*, beta: float, **rest: Any) -> None:
    check_temperature(**rest)
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(f"beta of jsd must lie in [0, 1], got {beta}: 0 is KL(teacher‖student), 1 is KL(student‖teacher).")


OBJECTIVE = Objective(fn=jsd, needs=support_needs, check=_check)
