"""YAML of recipes: a value is what it looks like, or an error with its line."""

import json

import pytest
import yaml

from tdistill.recipe.overrides import apply_overrides
from tdistill.recipe.text import dump_yaml, parse_yaml
from tdistill.runtime.errors import ConfigError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

READ = {
    "no is text": ("a: no", {"a": "no"}),
    "no sexagesimal numbers": ("a: 1:30", {"a": "1:30"}),
    "no octal by a zero": ("a: 010", {"a": "010"}),
    "a date is text": ("a: 2026-11-26", {"a": "2026-11-26"}),
    "exponents": ("a: 1e-4\nb: -2.5E+3\nc: .5", {"a": 1e-4, "b": -2500.0, "c": 0.5}),
    "integers": ("a: 0x10\nb: 1_000\nc: -7", {"a": 16, "b": 1000, "c": -7}),
    "booleans and null": ("a: true\nb: False\nc: ~\nd:", {"a": True, "b": False, "c": None, "d": None}),
    "merge": ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
    "JSON's surrogate pairs": (json.dumps({"a": "😀"}), {"a": "😀"}),
    "byte order mark": (b"\xef\xbb\xbfa: 1", {"a": 1}),
}
REFUSED = {
    "key twice": ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' stands twice"),
    "key twice below": ("s:\n  a: 1\n  a: 1", "line 3, column 3: the key 'a' stands twice"),
    "merge key twice": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "line 4, column 3: the merge key << stands twice"),
    "alias bomb": (BOMB, "values once aliases are expanded"),
    "alias in itself": ("a: &a [*a]", "an alias that holds itself"),
    "deep": ("[" * 100_000, "levels deep"),
    "tag": ("a: !!int ''", "line 1, column 4: the tag"),
    "object": ("a: !!python/object/apply:os.system [ls]", "python/object/apply:os.system"),
    "key that is a number": ("1: 2", "a key must be text, got 1"),
    "key that is a list": ("? [a]\n: 2", "a key must be text"),
    "too large a number": ("a: 1e400", "no float holds the number 1e400"),
    "too small a number": ("a: 1e-400", "no float holds the number 1e-400"),
    "too long an integer": ("a: " + "9" * 5000, "an integer of 5,000 characters"),
    "half of a pair": ('a: "\\ud83d"', "half of a surrogate pair"),
    "NUL": ("a: \x00", "not YAML"),
    "UTF-16": ("a: 1".encode("utf-16"), "not UTF-8"),
    "tab": ("a:\n\tb: 1", "not YAML"),
    "two documents": ("a: 1\n---\nb: 1", "not YAML"),
    "too large a file": ("a: " + "x" * (1 << 20), "has 1,048,579 bytes"),
}


@pytest.mark.parametrize("name", READ)
def test_yaml_is_read_as_it_looks(name: str) -> None:
    text, value = READ[name]
    assert repr(parse_yaml(text, "r.yaml")) == repr(value)


@pytest.mark.parametrize("name", REFUSED)
def test_yaml_that_would_be_misread_is_refused_with_its_place_in_few_words(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "r.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("r.yaml")
    assert len(str(error.value)) < 1000


def test_two_places_with_one_alias_can_be_changed_apart() -> None:
    raw = parse_yaml("sft: &a {arguments: {max_steps: 1}}\ntrain: *a", "r.yaml")
    apply_overrides(raw, ["train.arguments.max_steps=2"])
    assert raw == {"sft": {"arguments": {"max_steps": 1}}, "train": {"arguments": {"max_steps": 2}}}


@pytest.mark.parametrize(
    "text", ["1e-4", "no", "0o10", "0x10", "1_0", "", "~", "2026-11-26", "1:30", "<<", "=", "a #b", "\x85", "\u2028", "é", " a"]
)
def test_a_text_is_written_so_that_it_is_read_as_text(text: str) -> None:
    written = dump_yaml({"a": text})
    assert parse_yaml(written, "r.yaml") == {"a": text}
    assert yaml.safe_load(written) == {"a": text}, "for readers of YAML 1.1"


OVERRIDES = {
    "no value": ("seed", "must look like section.key=value"),
    "empty part": ("data..train=x", "has an empty part"),
    "negative index": ("train.objective.-1.name=x", "is a list of 1, and '-1' is no index of it"),
    "index that is not there": ("train.objective.1.name=x", "use 0 to 0"),
    "another script's digit": ("train.objective.².name=x", "is no index of it"),
    "below a value": ("seed.x=1", "seed is 3, no section"),
    "not YAML": ("title=[", "is not YAML"),
    "a comment": ("title=a #b", "cut at '#'"),
    "key twice": ("data={train: a, train: b}", "the key 'train' stands twice"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_that_would_be_lost_is_refused(name: str) -> None:
    override, message = OVERRIDES[name]
    raw = {"seed": 3, "data": {"train": "a"}, "train": {"objective": [{"name": "nll"}]}}
    with pytest.raises(ConfigError, match="Override") as error:
        apply_overrides(raw, [override])
    assert message in str(error.value)


def test_an_override_that_a_later_one_undoes_is_named() -> None:
    raw = {"seed": 3, "train": {"lm": {"corpus": "a"}}}
    undone = apply_overrides(raw, ["train.lm.corpus=b", "seed=1", "train.lm=null", "seed=2", "seedling=1"])
    assert raw == {"seed": 2, "train": {"lm": None}, "seedling": 1}
    assert undone == [
        "the override of train.lm.corpus is replaced by the later one of train.lm",
        "the override of seed is replaced by the later one of seed",
    ]
