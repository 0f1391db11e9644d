"""Bind an objective: check a name and its arguments, or a weighted sum of them, before any model loads."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pydantic
import torch

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import NEEDS, BoundObjective, ObjectiveOutput
from tdistill.objectives.registry import OBJECTIVES
from tdistill.runtime.errors import ConfigError, brief, nearest

Term = Mapping[str, Any]


def bind(objective: str | Term | Sequence[Term], **arguments: Any) -> BoundObjective:
    """Check an objective's arguments against its signature and return the partial that the trainer takes.

    ``bind("iq_learn", alpha=10.0)``, or a mapping ``{"name": "iq_learn", "alpha": 10.0}``, or a list of mappings, each
    with an optional ``weight``: their weighted sum, with needs united and metrics prefixed by the objective's name.

    Raises:
        ConfigError: an unknown objective or argument (the nearest known one is named), or a value out of range.
    """
    if isinstance(objective, str):
        return _bind_one(objective, arguments)
    if arguments:
        raise ConfigError("bind takes keyword arguments only with an objective's name.")
    if isinstance(objective, Mapping):
        objective = [objective]
    terms = [_split_term(term) for term in objective]
    if not terms:
        raise ConfigError("The objective is an empty list: name at least one of " + ", ".join(OBJECTIVES) + ".")
    bound = [(weight, _bind_one(name, arguments)) for weight, name, arguments in terms]
    if len(bound) == 1 and bound[0][0] == 1.0:
        return bound[0][1]
    return BoundObjective(
        name=" + ".join(f"{weight:g}·{b.describe()}" for weight, b in bound),
        arguments={},
        needs=frozenset().union(*(b.needs for _, b in bound)),
        call=partial(_weighted_sum, bound=_unique_names(bound)),
    )


def _split_term(term: Term) -> tuple[float, str, dict[str, Any]]:
    if not isinstance(term, Mapping) or "name" not in term:
        raise ConfigError(f"A term of an objective needs a name, e.g. {{name: iq_learn, weight: 1.0}}; got {term!r}.")
    arguments = dict(term)
    name, weight = arguments.pop("name"), arguments.pop("weight", 1.0)
    if not isinstance(name, str):
        raise ConfigError(f"An objective's name must be text, got {brief(name)}.{nearest(str(name), OBJECTIVES)}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ConfigError(f"weight of objective {name!r} must be a positive number, got {weight!r}.")
    return float(weight), name, arguments


def _bind_one(name: str, arguments: Mapping[str, Any]) -> BoundObjective:
    registry = OBJECTIVES
    if not isinstance(name, str) or name not in registry:
        raise ConfigError(f"Unknown objective {name!r}.{nearest(str(name), registry)}")
    entry = registry[name]
    given = _check_arguments(name, entry.fn, arguments)
    defaults = {k: p.default for k, p in _options(entry.fn).items()}
    full = {**defaults, **given}
    entry.check(**full)
    needs = entry.needs(**full)
    if not needs <= NEEDS:
        raise ConfigError(f"Objective {name!r} needs {sorted(needs - NEEDS)}, which no head offers: {sorted(NEEDS)}.")
    return BoundObjective(name=name, arguments=given, needs=needs, call=partial(entry.fn, **full))


def _options(fn: Any) -> dict[str, inspect.Parameter]:
    return {k: p for k, p in inspect.signature(fn).parameters.items() if p.kind is p.KEYWORD_ONLY}


def _check_arguments(name: str, fn: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    options, hints = _options(fn), typing.get_type_hints(fn, include_extras=True)
    checked = {}
    for key, value in arguments.items():
        if key not in options:
            raise ConfigError(f"Objective {name!r} has no argument {key!r}.{nearest(key, [*options, 'weight'])}")
        try:
            checked[key] = pydantic.TypeAdapter(hints[key]).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ConfigError(f"Objective {name!r}: {key}={value!r} is not allowed. {problem}.") from None
    return checked


def _unique_names(bound: list[tuple[float, BoundObjective]]) -> list[tuple[str, float, BoundObjective]]:
    names = [b.name for _, b in bound]
    return [(n if names.count(n) == 1 else f"{n}_{i}", w, b) for i, (n, (w, b)) in enumerate(zip(names, bound, strict=True))]


def _weighted_sum(steps: Steps, *, bound: list[tuple[str, float, BoundObjective]]) -> ObjectiveOutput:
    loss_t = torch.zeros_like(steps.teacher_logp_t[..., 0])
    metrics = {}
    for prefix, weight, objective in bound:
        out = objective(steps)
        loss_t = loss_t + weight * out.loss_t
        metrics[f"{prefix}/loss"] = out.loss_t.detach()
        metrics.update({f"{prefix}/{key}": value for key, value in out.metrics.items()})
    return ObjectiveOutput(loss_t, metrics)
