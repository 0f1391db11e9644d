"""Compute the generalised Jensen-Shannon divergence, which lies between forward and reverse KL and is bounded between them."""

from typing import Any

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Finite, FinitePositive, Objective, ObjectiveOutput
from tdistill.objectives.parts.divergence import jensen_shannon
from tdistill.objectives.parts.support import Support, check_temperature, distributions, support_needs
from tdistill.runtime.errors import ConfigError


def jsd(steps: Steps, *, beta: Finite = 0.5, support: Support = "tail", loss_temperature: FinitePositive = 1.0) -> ObjectiveOutput:
    """Measure how far teacher and student are from their mixture (Agarwal et al. 2024, GKD).

        loss_t = β·KL(p‖M) + (1−β)·KL(q‖M),  M = β·p + (1−β)·q,  p the teacher, q the student

    β = 0 is KL(p‖q) and β = 1 is KL(q‖p), as in TRL's GKD trainer: the limits of loss/β and of loss/(1−β). The equation itself
    gives 0 there. In between the loss is at most the entropy of (β, 1−β).

    Args:
        beta: the teacher's share of M, in [0, 1]; the default is TRL's.
        support: as for ``forward_kl``; ``tail`` is a lower bound of ``dense``.
        loss_temperature: divides both logits; ``tail`` allows only 1.
    """
    return ObjectiveOutput(jensen_shannon(*distributions(steps, support, loss_temperature), beta))


def _check(*, beta: float, **rest: Any) -> None:
    check_temperature(**rest)
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(f"beta of jsd must lie in [0, 1], got {beta}: 0 is KL(teacher‖student), 1 is KL(student‖teacher).")


OBJECTIVE = Objective(fn=jsd, needs=support_needs, check=_check, scope="step")
