"""Read a recipe file with overrides, and validate its sections."""

import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tdistill.recipe.overrides import apply_overrides
from tdistill.recipe.plain import find_unplain
from tdistill.recipe.schema import Recipe
from tdistill.recipe.text import MOST_BYTES, parse_yaml
from tdistill.runtime.errors import ConfigError, brief, nearest
from tdistill.runtime.progress import say


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Parse a recipe file, apply ``key.sub=value`` overrides, and validate every section.

    ``experiment.recipe_checks.open_recipe`` also checks that the sections agree with each other and with the libraries that read them.

    Args:
        path: a YAML file.
        overrides: texts such as ``train.arguments.max_steps=10``.

    Raises:
        ConfigError: the file is missing or is not YAML, or a key is unknown, is missing or has a wrong value. The message names each
            key, and the nearest known one.
    """
    raw = parse_yaml(_read(Path(path)), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a mapping of sections, got {brief(raw)}.")
    for undone in apply_overrides(raw, overrides or []):
        say(undone)
    unplain = find_unplain(raw)
    if unplain is not None:
        raise ConfigError(f"{path}: {unplain.place!r} {unplain.problem}.")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_explain(e)}" for e in error.errors()[:MOST_PROBLEMS])) from None


MOST_PROBLEMS = 20  # of one recipe, in one message


def _read(path: Path) -> bytes:
    if not path.is_file():
        what = "It is a directory" if path.is_dir() else "No such file"
        raise ConfigError(f"No recipe at {path}: {what.lower()}. Recipes of the repository lie in recipes/.")
    try:
        with path.open("rb") as handle:
            return handle.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from None


def _explain(error: Any) -> str:
    place = ".".join(f"{part!s:.60}" for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = _section(error["loc"][:-1])
        known = section.model_fields if section is not None else []
        return f"unknown key {place!r}.{nearest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{place!r} is missing."
    problem = str(error["msg"]).removeprefix("Value error, ")
    # A message of our own check names what it got.
    return f"{place!r}: {problem}." if error["type"] == "value_error" else f"{place!r}: {problem}, got {brief(error.get('input'))}."


def _section(location: tuple[Any, ...]) -> type[BaseModel] | None:
    model: Any = Recipe
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return None
        model = field.annotation
        if isinstance(model, types.UnionType):
            model = next((a for a in typing.get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    return model
