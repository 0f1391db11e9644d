"""Build the distributions that the divergences compare: A_p with a tail bucket, projected onto A_p, or over the whole vocabulary."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from tdistill.mdp.bellman import log_tail, masked, project, soft_value
from tdistill.mdp.steps import Steps
from tdistill.runtime.errors import ConfigError

Support = Literal["tail", "proj", "uniform", "dense"]


def support_needs(*, support: Support, **_: object) -> frozenset[str]:
    """Return what each support needs: ``tail`` the log-partition, ``uniform`` and ``dense`` every logit, ``dense`` also the teacher."""
    return frozenset({"tail": {"log_z"}, "proj": set(), "uniform": {"uniform"}, "dense": {"dense"}}[support])


def check_temperature(*, support: Support, loss_temperature: float, **_: object) -> None:
    """Check that a temperature has every logit that it rescales: the mass of a tail bucket at T ≠ 1 is not known from A_p.

    Raises:
        ConfigError: ``loss_temperature`` ≠ 1 with ``support="tail"``.
    """
    if support == "tail" and loss_temperature != 1.0:
        raise ConfigError(
            f"loss_temperature={loss_temperature} can't be used with support='tail': the tail's mass at another temperature is "
            "not known from the candidates. Use support='proj', support='uniform', or support='dense' with the teacher online."
        )


def check_skew(*, skew: float, **rest: Any) -> None:
    """Check that a skew divergence mixes a share ``skew`` below 1: at 1 nothing is left to compare.

    Raises:
        ConfigError: ``skew`` outside [0, 1), or what ``check_temperature`` refuses.
    """
    check_temperature(**rest)
    if not 0.0 <= skew < 1.0:
        raise ConfigError(f"skew must lie in [0, 1), got {skew}: 0 is the plain KL divergence, and at 1 both sides are the same.")


def distributions(
    steps: Steps, support: Support, loss_temperature: float
) -> tuple[Float[Tensor, "B T J"], Float[Tensor, "B T J"], Bool[Tensor, "B T J"]]:
    """Return the log-probs of teacher and student on the chosen support, and which slots count.

    ``tail``: the candidates and one bucket with the rest of each (J = K + 1); exact, and without bucket, when K = V.
    ``proj``: both projected onto A_p (J = K).  ``dense``: the whole vocabulary (J = V).  ``uniform``: likewise, from the candidates
    alone: the teacher's mass outside A_p is spread evenly over the tokens there.
    """
    if support in ("uniform", "dense"):
        every = steps.uniform if support == "uniform" else steps.dense
        assert every is not None
        # Every token of a state is legal: nothing to mask, and over a vocabulary each further pass is felt.
        if loss_temperature == 1.0:
            return every.teacher_logp_t, every.q_t.log_softmax(-1), every.legal_t
        teacher, student = ((x / loss_temperature).log_softmax(-1) for x in (every.teacher_logp_t, every.q_t))
        return teacher, student, every.legal_t
    if support == "proj":
        teacher = project(steps.teacher_logp_t / loss_temperature, steps.legal_t)
        return teacher, project(steps.q_t / loss_temperature, steps.legal_t), steps.legal_t
    assert steps.log_z_t is not None
    teacher = with_tail(steps.teacher_logp_t, steps.legal_t)
    student = with_tail(steps.q_t - steps.log_z_t.unsqueeze(-1), steps.legal_t)
    counts = steps.legal_t.sum(-1, keepdim=True)
    bucket = counts > 0 if steps.vocab_size is None else (counts > 0) & (counts < steps.vocab_size)
    return teacher, student, torch.cat([steps.legal_t, bucket], -1)


def with_tail(logp: Float[Tensor, "B T K"], legal: Bool[Tensor, "B T K"]) -> Float[Tensor, "B T J"]:
    """Append log(1 − Σ_{A_p} exp logp) as one more slot."""
    return torch.cat([masked(logp, legal), log_tail(soft_value(logp, legal)).unsqueeze(-1)], -1)


def kl(p: Float[Tensor, "*B J"], q: Float[Tensor, "*B J"], legal: Bool[Tensor, "*B J"], skew: float = 0.0) -> Float[Tensor, "*B"]:
    """Return KL(p‖m) = Σ p·(log p − log m) over legal slots, from log-probs, m = λp + (1−λ)q with λ = ``skew`` in [0, 1), by default q itself.

    A slot that p gives 0 contributes 0.
    """
    return _Divergence.apply(p, q, legal, skew)


class _Divergence(torch.autograd.Function):
    """Compute ``kl`` with its derivatives written out: by log p it is p·(log p − log m) + p·s, by log q it is −p·s, with s = (1−λ)q/m, which is
    1 at λ = 0. For each that needs a gradient it keeps one tensor: over a vocabulary what is kept is felt.
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
