"""Build the distributions that the divergences compare: over A_p and a tail bucket, projected onto A_p, or over the whole vocabulary."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
        # Every token of a state is legal, so that there is nothing to mask: each further pass over a vocabulary costs time.
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
