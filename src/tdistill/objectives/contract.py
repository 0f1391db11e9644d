"""Define an objective: a pure function of ``Steps``, the fields it needs, and the checks on its arguments."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tdistill.mdp.steps import Steps
from tdistill.runtime.errors import ConfigError

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
Gamma = UnitInterval
Positive = Annotated[float, Field(gt=0.0)]  # inf too: no clip, no bound, or a linear φ
FinitePositive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

# Fields that an objective may ask for beyond the logits at the candidates. ``target``: a target network. ``other``: data with steps that
# are not the expert's.
NEEDS = frozenset({"log_z", "max", "taken", "value", "action_value", "target", "behaviour", "expert", "other", "dense", "uniform"})

# Need → the field of ``Steps`` that answers it. ``expert_t`` may be missing: then every step is the expert's.
FIELDS = {
    "log_z": "log_z_t",
    "max": "max_t",
    "taken": "taken_logit_t",
    "value": "value_t",
    "action_value": "action_value_t",
    "target": "target",
    "behaviour": "behaviour_logp_t",
    "dense": "dense",
    "uniform": "uniform",
}


@dataclass(frozen=True)
class ObjectiveOutput:
    """Hold the loss and metrics of each step. The trainer reduces both; NaN in a metric means: not defined at this step."""

    loss_t: Float[Tensor, "B T"]
    metrics: dict[str, Float[Tensor, "B T"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """Describe one entry of ``OBJECTIVES``.

    ``fn(steps, *, …)`` is the loss; its keyword-only arguments are its configuration.
    ``needs(**bound)`` names the fields of ``Steps`` it reads beyond the first eight (a subset of ``NEEDS``).
    ``check(**bound)`` raises ``ConfigError`` for combinations that no annotation can forbid.
    """

    fn: Callable[..., ObjectiveOutput]
    needs: Callable[..., frozenset[str]]
    check: Callable[..., None] = lambda **_: None


@dataclass(frozen=True)
class BoundObjective:
    """Hold an objective with its arguments checked and filled in, for the trainer."""

    name: str
    arguments: dict[str, Any]
    needs: frozenset[str]
    call: Callable[[Steps], ObjectiveOutput]

    def __call__(self, steps: Steps) -> ObjectiveOutput:
        """Return the loss and metrics of each step of a batch.

        Raises:
            ConfigError: the head did not give what the objective needs.
        """
        missing = [field for need, field in FIELDS.items() if need in self.needs and getattr(steps, field) is None]
        if missing:
            raise ConfigError(
                f"{self.name} needs Steps.{missing[0]}, which this head did not give: ask StudentModel.forward for needs={sorted(self.needs)}."
            )
        return self.call(steps)

    def describe(self) -> str:
        """Return one line for tables and logs: the name and the given arguments."""
        return self.name + ("(" + ", ".join(f"{k}={v}" for k, v in self.arguments.items()) + ")" if self.arguments else "")
