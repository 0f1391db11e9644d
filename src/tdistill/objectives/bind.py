"""Bind an objective: check a name and its arguments, or a weighted sum of them, before any model loads."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import pydantic

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import NEEDS, BoundObjective, Objective, ObjectiveOutput, Scope
from tdistill.objectives.registry import OBJECTIVES
from tdistill.runtime.errors import ConfigError, brief, nearest

Term = Mapping[str, Any]


def bind(objective: str | Term | Sequence[Term], **arguments: Any) -> BoundObjective:
    """Check an objective's arguments against its signature and return the function that the trainer calls.

    ``bind("iq_learn", alpha=10.0)``, or a mapping ``{"name": "iq_learn", "alpha": 10.0}``, or a list of mappings, each
    with an optional ``weight``: their weighted sum, with needs united and metrics prefixed by the objective's name.

    Examples:
        >>> bind("csil", gamma=0.9).describe()
        'csil(gamma=0.9)'
        >>> bind([{"name": "nll", "weight": 0.5}, {"name": "forward_kl"}]).describe()
        '0.5·nll + 1·forward_kl'
        >>> sorted(bind("reverse_kl", support="dense").needs)
        ['dense']
        >>> bind("csil", gamma=1.5)
        Traceback (most recent call last):
        tdistill.runtime.errors.ConfigError: Objective 'csil': gamma=1.5 is not allowed. Input should be less than or equal to 1.

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
    weights = [weight for weight, _, _ in terms]
    bound = [_bind_one(name, arguments) for _, name, arguments in terms]
    if weights == [1.0]:
        return bound[0]
    summands = [Summand(weight, b.call, prefix) for weight, b, prefix in zip(weights, bound, _prefixes(bound), strict=True)]
    return BoundObjective(
        name=" + ".join(f"{weight:g}·{b.describe()}" for weight, b in zip(weights, bound, strict=True)),
        arguments={},
        needs=frozenset().union(*(b.needs for b in bound)),
        call=partial(weighted_sum, summands=summands),
        terms=tuple(term | {"weight": weight} for weight, b in zip(weights, bound, strict=True) for term in b.terms),
        scope=max((b.scope for b in bound), key=get_args(Scope).index),
    )


@dataclass(frozen=True)
class Summand:
    """Hold one term of a weighted sum. ``prefix`` goes before the names of its metrics and its loss; None: its metrics keep their names."""

    weight: float
    call: Callable[[Steps], ObjectiveOutput]
    prefix: str | None = None


def weighted_sum(steps: Steps, *, summands: Sequence[Summand]) -> ObjectiveOutput:
    """Return loss_t = Σ_i weight_i·loss_{i,t}, with the metrics of all terms."""
    losses, metrics = [], {}
    for summand in summands:
        out = summand.call(steps)
        losses.append(summand.weight * out.loss_t)
        if summand.prefix is None:
            metrics.update(out.metrics)
        else:
            metrics.update({f"{summand.prefix}/loss": out.loss_t} | {f"{summand.prefix}/{key}": value for key, value in out.metrics.items()})
    return ObjectiveOutput(functools.reduce(lambda a, b: a + b, losses), metrics)


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
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ConfigError(f"Unknown objective {name!r}.{nearest(str(name), OBJECTIVES)}")
    entry = OBJECTIVES[name]
    given = _checked(name, entry, arguments)
    full = entry.defaults() | given
    own = {k: full[k] for k in entry.own_defaults()}
    entry.check(**own)
    needs, call, anchor, scope = entry.needs(**own), partial(entry.fn, **own), None, entry.scope
    if full.get("anchor", "none") != "none":
        bound = _bind_one(full["anchor"], {})
        needs, anchor = needs | bound.needs, bound.terms[0] | {"weight": full["anchor_weight"]}
        call = partial(weighted_sum, summands=[Summand(1.0, call), Summand(full["anchor_weight"], bound.call)])
        scope = max(scope, bound.scope, key=get_args(Scope).index)
    if not needs <= NEEDS:
        raise ConfigError(f"Objective {name!r} needs {sorted(needs - NEEDS)}, which no head offers: {sorted(NEEDS)}.")
    first_name = next(k for k, other in OBJECTIVES.items() if other is entry)
    term = {"name": first_name, "version": entry.version, "weight": 1.0, "arguments": _for_json(own), "anchor": anchor}
    return BoundObjective(name=name, arguments=given, needs=needs, call=call, terms=(term,), scope=scope)


def _checked(name: str, entry: Objective, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments given, each as its annotation has it: an int where a float is expected becomes one."""
    options, annotations = entry.defaults(), entry.annotations()
    checked = {}
    for key, value in arguments.items():
        if key not in options:
            raise ConfigError(f"Objective {name!r} has no argument {key!r}.{nearest(key, [*options, 'weight'])}")
        try:
            checked[key] = pydantic.TypeAdapter(annotations[key]).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ConfigError(f"Objective {name!r}: {key}={value!r} is not allowed. {problem}.") from None
    return checked


def _for_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments sorted by name. JSON has no number for ∞, so that it is the text ``inf``."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in sorted(arguments.items())}


def _prefixes(bound: Sequence[BoundObjective]) -> list[str]:
    names = [b.name for b in bound]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
