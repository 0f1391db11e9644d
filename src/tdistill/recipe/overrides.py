"""Apply ``section.key=value`` overrides to a recipe that has been read and not checked yet."""

from typing import Any

from tdistill.recipe.text import parse_yaml
from tdistill.runtime.errors import ConfigError, brief


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> list[str]:
    """Put every override into ``raw``, in order. Return a sentence for each override that a later one undoes.

    Raises:
        ConfigError: an override has no ``=``, an empty part, an index that its list lacks, a parent that is no section, or a value that
            is not YAML or is cut by a comment.
    """
    given: list[str] = []
    undone = []
    for override in overrides:
        key = _apply(raw, override)
        undone += [f"the override of {old} is replaced by the later one of {key}" for old in given if f"{old}.".startswith(f"{key}.")]
        given.append(key)
    return undone


def _apply(raw: dict[str, Any], override: str) -> str:
    key, sign, text = override.partition("=")
    key = key.strip()
    where = f"Override {key!r:.60}"
    if not sign or not key:
        raise ConfigError(f"{where} must look like section.key=value.")
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(f"{where} has an empty part between its dots: write section.key=value.")
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        place = ".".join(parts[: depth + 1])
        if isinstance(node, list):
            node = node[_index(node, part, f"{where}: {'.'.join(parts[:depth])}")]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{where}: {place:.60} is {brief(node)}, no section: give the whole of it, {place:.60}={{…}}.")
    value = _value(text, where)
    node[_index(node, parts[-1], f"{where}: {'.'.join(parts[:-1])}") if isinstance(node, list) else parts[-1]] = value
    return key


def _index(items: list[Any], part: str, place: str) -> int:
    # A digit of another script, or of 5,000 characters, is a digit too.
    if not (part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(items)):
        raise ConfigError(f"{place:.160} is a list of {len(items)}, and {part!r:.40} is no index of it: use 0 to {len(items) - 1}.")
    return int(part)


def _value(text: str, where: str) -> Any:
    value = parse_yaml(text, f"{where}: its value")
    if str(value).count("#") < text.count("#") and not isinstance(value, dict | list):
        raise ConfigError(f"{where}: its value is cut at '#', where YAML's comments begin: put it in quotes inside the shell's quotes.")
    return value
