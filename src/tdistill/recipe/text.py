"""Read and write the YAML of recipes. A value that YAML would change without a word is an error that names its line.

Plain YAML 1.1 takes a key given twice (the last wins), reads ``no`` as false, ``1:30`` as 90 and ``010`` as 8, lets two places share one
value through an alias, and can expand a few lines to gigabytes. Here a value is what it looks like, or an error.
"""

import math
import re
from typing import Any

import yaml

from tdistill.recipe.plain import MOST_DEPTH
from tdistill.runtime.errors import ConfigError

MOST_BYTES, MOST_NODES, MOST_DIGITS = 1 << 20, 20_000, 19
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
# The core schema of YAML 1.2, and underscores between digits. What looks like a number and is none of these is text.
_FLOAT = r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
_RESOLVERS = (
    ("null", r"(?:~|null|Null|NULL|)", "~nN\0"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?(?:0|[1-9](?:_?[0-9])*)|0x[0-9a-fA-F]+|0o[0-7]+)", "-+0123456789"),
    ("float", rf"(?:{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", "-+.0123456789"),
    ("merge", r"<<", "<"),
)


class _RefusedError(Exception):
    """Report an event that no recipe may hold."""

    def __init__(self, event: yaml.Event, problem: str):
        super().__init__(problem)
        self.event = event


class _Loader(yaml.SafeLoader):
    """Compose nodes, and refuse tags and deep nesting before the parser's recursion meets them."""

    depth = 0
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class declares an instance variable

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, as PyYAML calls it."""
        event = self.peek_event()
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise _RefusedError(event, f"the tag {event.tag!r:.60} is not allowed. Leave it out; quote what is text.")
        if self.depth > MOST_DEPTH:
            raise _RefusedError(event, f"nested more than {MOST_DEPTH} levels deep. No option of a recipe is.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quote what YAML 1.1 or 1.2 would take for something else than text, so that every reader sees text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.Node:
    # Line breaks that PyYAML would fold when it reads them back.
    return dumper.represent_scalar(_TAG + "str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None)


_Dumper.add_representer(str, _write_text)
for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^{_pattern}$"), ["" if c == "\0" else c for c in _first])


def dump_yaml(value: Any) -> str:
    """Write a value so that ``parse_yaml`` reads the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(content: str | bytes, where: str) -> Any:
    """Parse one YAML document of text, numbers, booleans, nulls, lists and mappings with text as keys.

    Anchors, aliases and merge keys work. Every alias gives a copy of its own.

    Args:
        content: the text; bytes are read as UTF-8, with or without a byte order mark.
        where: the file or the override, for the message.

    Raises:
        ConfigError: not UTF-8, not YAML, a key given twice, a key that is no text, a tag such as ``!!python/object``, a number that no
            float or 64-bit integer holds, half of a surrogate pair, too deep, or too much once aliases are expanded.
    """
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{where} has {len(content):,} bytes; a recipe has at most {MOST_BYTES:,}.")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        node = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as cause:
        raise ConfigError(f"{where} is not UTF-8 (byte {cause.start} is 0x{cause.object[cause.start]:02x}): save it as UTF-8.") from None
    except _RefusedError as cause:
        raise ConfigError(f"{where}, {_at(cause.event)}: {cause}") from None
    except yaml.YAMLError as cause:
        raise ConfigError(f"{where} is not YAML: {cause!s:.600}") from None
    return None if node is None else _Values(where).value(node)


def _at(marked: Any) -> str:
    mark = marked.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"


class _Values:
    """Turn composed nodes into values, every alias into a copy."""

    def __init__(self, where: str):
        self.where, self.nodes = where, 0

    def fail(self, node: yaml.Node, problem: str) -> ConfigError:
        return ConfigError(f"{self.where}, {_at(node)}: {problem}")

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES:
            raise self.fail(node, f"more than {MOST_NODES:,} values once aliases are expanded. Write out what is meant.")
        if depth > MOST_DEPTH:
            raise self.fail(node, f"nested more than {MOST_DEPTH} levels deep, or an alias that holds itself.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                if merged is not None:
                    raise self.fail(key_node, "the merge key << stands twice. Give it once, with a list.")
                merged = self.merge(value_node, depth)
                continue
            key = self.value(key_node, depth + 1)
            if not isinstance(key, str):
                raise self.fail(key_node, f"a key must be text, got {key!r:.60}. Put it in quotes if it is a name.")
            if key in own:
                raise self.fail(key_node, f"the key {key!r:.60} stands twice in one section. Leave one out.")
            own[key] = self.value(value_node, depth + 1)
        return {**(merged or {}), **own}

    def merge(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        """Return the keys that ``<<`` brings: of several mappings, the first that has a key wins."""
        found = self.value(node, depth + 1)
        parts = found if isinstance(found, list) else [found]
        if not all(isinstance(part, dict) for part in parts):
            raise self.fail(node, "the merge key << takes a mapping, or a list of mappings.")
        result: dict[str, Any] = {}
        for part in reversed(parts):
            result |= part
        return result

    def scalar(self, node: yaml.Node) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return self.integer(node)
        if kind == "float":
            return self.number(node)
        try:  # JSON writes a character outside the basic plane as two escapes
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self.fail(node, "a text holds half of a surrogate pair, which UTF-8 can't write.") from None

    def integer(self, node: yaml.Node) -> int:
        if len(node.value) > MOST_DIGITS + 1:
            raise self.fail(node, f"an integer of {len(node.value):,} characters is too large. Quote it if it is text.")
        return int(node.value, 0)

    def number(self, node: yaml.Node) -> float:
        text = node.value.lower()
        if text.endswith(("inf", "nan")):  # the section that holds it says that it must be finite, and names the key
            return float(text.replace(".", "", 1))
        number = float(text)
        if math.isinf(number) or (number == 0.0 and re.search("[1-9]", text.partition("e")[0])):
            raise self.fail(node, f"no float holds the number {node.value:.30}.")
        return number
