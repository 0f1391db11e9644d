"""Compare values of a recipe with the type hints of another library's arguments, such as those of ``TrainingArguments``."""

import dataclasses
import enum
import math
import types
import typing
from functools import cache
from typing import Any


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Return the type of every argument of a data class."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    return {k: v for k, v in typing.get_type_hints(cls).items() if k in known}


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value has a type. A whole number counts as a float; nothing else is converted."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if origin in (list, set) or hint in (list, set):
        return isinstance(value, list) and all(not inner or fits(item, inner[0]) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and all(not inner or fits(item, inner[1]) for item in value.values())
    return isinstance(hint, type) and isinstance(value, hint)


def describe_hint(hint: Any) -> str:
    """Return the name of a type in words for the author of a recipe, such as ``a whole number, or null``."""
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null", dict: "a mapping"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return ", or ".join(dict.fromkeys(describe_hint(option) for option in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) in (list, set):
        return "a list"
    return words.get(typing.get_origin(hint) or hint, str(hint))
