"""Tell the steps of the expert (the teacher, or a human) from those of others."""

from jaxtyping import Bool
from torch import Tensor, ones_like

from tdistill.mdp.steps import Steps
from tdistill.runtime.errors import ConfigError


def expert_flags(steps: Steps, required: bool = False) -> Bool[Tensor, "B T"]:
    """Tell which steps the teacher or a human took. If the batch does not say, all of them.

    Raises:
        ConfigError: the batch does not say, and ``required``.
    """
    if steps.expert_t is None and not required:
        return ones_like(steps.mask_t)
    if steps.expert_t is None:
        raise ConfigError("This objective tells the expert's steps from others: give Steps.expert_t, True where the teacher wrote the token.")
    return steps.expert_t
