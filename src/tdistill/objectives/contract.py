"""Define an objective: a pure function of ``Steps``, the fields it needs, and the checks on its arguments."""

import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

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
# The objective that holds the student's mass outside A_p, which a loss on A_p alone never sees.
Anchor = Literal["none", "tail", "nll"]

# The steps that the loss of a step reads, from narrow to wide.
Scope = Literal["step", "response", "batch"]

# Need → the field of ``Steps`` that answers it.
FIELDS: dict[str, str] = {f.metadata["need"]: f.name for f in dataclasses.fields(Steps) if "need" in f.metadata}
# Needs that may be answered by None.
MAY_BE_MISSING = frozenset(f.metadata["need"] for f in dataclasses.fields(Steps) if f.metadata.get("may_be_missing"))
# Needs of the training data, which no field answers. ``other``: some of the steps are not the expert's.
DATA_NEEDS = frozenset({"other"})
NEEDS = frozenset(FIELDS) | DATA_NEEDS


@dataclass(frozen=True)
class ObjectiveOutput:
    """Hold the loss and metrics of each step. The trainer reduces both. NaN in a metric means: not defined at this step."""

    loss_t: Float[Tensor, "B T"]
    metrics: dict[str, Float[Tensor, "B T"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """Describe one entry of ``OBJECTIVES``.

    ``fn(steps, *, …)`` is the loss. Its keyword-only arguments are its configuration.
    ``needs(**bound)`` names the fields of ``Steps`` it reads beyond the first six (a subset of ``NEEDS``).
    ``check(**bound)`` raises ``ConfigError`` for combinations that no annotation can forbid.
    ``anchor`` is the default of the argument ``anchor``. That argument and ``anchor_weight`` add another objective as a second term;
    ``fn``, ``needs`` and ``check`` do not see them. None: the objective does not have these arguments.
    ``scope``: the steps that the loss of a step reads: the ``step`` alone, its ``response``, or the whole ``batch``. A head computes logits
    for as many steps at once.
    ``version``: raise it when the same arguments give another loss. Students of the version before are then trained anew.
    """

    fn: Callable[..., ObjectiveOutput]
    needs: Callable[..., frozenset[str]]
    check: Callable[..., None] = lambda **_: None
    anchor: Anchor | None = None
    scope: Scope = "response"
    version: int = 1

    def own_defaults(self) -> dict[str, Any]:
        """Return the arguments of ``fn`` and their defaults."""
        return {k: p.default for k, p in inspect.signature(self.fn).parameters.items() if p.kind is p.KEYWORD_ONLY}

    def defaults(self) -> dict[str, Any]:
        """Return every argument that ``bind`` takes, with its default."""
        return self.own_defaults() | ({} if self.anchor is None else {"anchor": self.anchor, "anchor_weight": 1.0})

    def annotations(self) -> dict[str, Any]:
        """Return the type of every argument, with its range."""
        return typing.get_type_hints(self.fn, include_extras=True) | {"anchor": Anchor, "anchor_weight": NonNegative}


@dataclass(frozen=True)
class BoundObjective:
    """Hold an objective with its arguments checked and filled in, for the trainer."""

    name: str
    arguments: dict[str, Any]  # those given
    needs: frozenset[str]
    call: Callable[[Steps], ObjectiveOutput]
    terms: tuple[dict[str, Any], ...]  # see ``identity``
    scope: Scope = "response"  # the widest of its terms

    def __call__(self, steps: Steps) -> ObjectiveOutput:
        """Return the loss of each step of a batch, and the metrics without gradient.

        Raises:
            ConfigError: the batch does not have what the objective needs.
        """
        required = {need: name for need, name in FIELDS.items() if need in self.needs - MAY_BE_MISSING}
        missing = [name for name in required.values() if getattr(steps, name) is None]
        if missing:
            raise ConfigError(
                f"{self.name} needs Steps.{missing[0]}, which this head did not give: ask StudentModel.forward for needs={sorted(self.needs)}."
            )
        out = self.call(steps)
        return ObjectiveOutput(out.loss_t, {name: metric.detach() for name, metric in out.metrics.items()})

    def describe(self) -> str:
        """Return one line for tables and logs: the name and the given arguments."""
        return self.name + ("(" + ", ".join(f"{k}={v}" for k, v in self.arguments.items()) + ")" if self.arguments else "")

    def identity(self) -> list[dict[str, Any]]:
        """Return what decides the loss, ready for JSON: a student is made anew when this changes.

        One entry a term, in the order given: ``name``, ``version``, ``weight``, ``arguments`` (all of them, defaults filled in, sorted)
        and ``anchor``, an entry of the same form or None. An alias has the identity of the objective it stands for.
        """
        return copy.deepcopy(list(self.terms))
