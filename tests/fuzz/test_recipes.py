"""Damaged and hostile recipes: refused with a message, or read as they are written, and written back the same."""

import contextlib
import copy
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_recipe_dict

from fuzz.mutate import HOSTILE, mutated_bytes, mutated_values, places, put
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.preflight import preflight
from tdistill.experiment.provenance import resolved_yaml
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.recipe.schema import Recipe
from tdistill.recipe.text import dump_yaml, parse_yaml
from tdistill.runtime.errors import ConfigError, TdistillError
from tdistill.runtime.parse import parse_json

Outcomes = Callable[..., Any]


@pytest.fixture
def valid(tiny_teacher: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe with every section, of which every value may be damaged."""
    raw = tiny_recipe_dict(tiny_teacher, tmp_path)
    (tmp_path / "corpus.txt").write_text("some words\n\n" * 40)
    raw["student"] = {"init": "prune", "keep_layers": [0, 3], "trust_remote_code": False}
    raw["rollout"] |= {"temperature": 0.9, "top_k": 5, "max_candidates": 50, "score_references": True}
    raw["sft"]["origins"] = ["human"]
    raw["train"] |= {
        "teacher_top_p": 0.7,
        "candidate_rule": {"name": "top_k", "value": 4},
        "on_policy": {"lmbda": 0.5, "refresh_steps": 2},
        "lm": {"corpus": str(tmp_path / "corpus.txt"), "lm_coef": 0.5, "window": 16},
        "monitor": {"log_completions": 1},
    }
    raw["train"]["arguments"] |= {
        "lr_scheduler_type": "cosine",
        "lr_scheduler_kwargs": {"num_cycles": 0.5},
        "report_to": "none",
        "weight_decay": 0.1,
    }
    return raw


def agrees(given: Any, loaded: Any) -> bool:
    """Say whether a value was read as written: nothing dropped, nothing converted but whole numbers where a number is asked."""
    if isinstance(given, dict):
        return isinstance(loaded, dict) and all(key in loaded and agrees(value, loaded[key]) for key, value in given.items())
    if isinstance(given, list):
        return isinstance(loaded, list) and len(given) == len(loaded) and all(map(agrees, given, loaded))
    return given == loaded and (type(given) is type(loaded) or {type(given), type(loaded)} == {int, float})


# Keys whose null means that the value follows another section's.
FOLLOWING = {
    "rollout": ("top_p", "seed"), "sft": ("seed",), "train": ("seeds",), "evaluation": ("seed", "max_completion_length"),
}  # fmt: skip


def written_out(raw: Any) -> Any:
    """Write out the short forms that a recipe has: an objective by its name, a baseline by its objective, null for what follows."""
    raw = copy.deepcopy(raw)
    for section, keys in FOLLOWING.items():
        for key in keys:
            if isinstance(raw.get(section), dict) and raw[section].get(key, 0) is None:
                del raw[section][key]
    train = raw["train"]
    for name, baseline in (train.get("baselines") or {}).items():
        train["baselines"][name] = baseline if isinstance(baseline, dict) and "objective" in baseline else {"objective": baseline}
    for system in (train, *(train.get("baselines") or {}).values()):
        if isinstance(system["objective"], str):
            system["objective"] = {"name": system["objective"]}
    return raw


def is_read_as_written(raw: Any, recipe: Recipe) -> bool:
    return agrees(written_out(raw), recipe.model_dump()) and parse_yaml(resolved_yaml(recipe), "recipe.yaml") == recipe.model_dump()


def load_values(directory: Path) -> Callable[[Any], Recipe]:
    def load(raw: Any) -> Recipe:
        path = directory / "mutated.yaml"
        path.write_bytes(dump_yaml(raw).encode("utf-8", "surrogatepass"))
        return open_recipe(path)

    return load


def sampled(valid: dict[str, Any], seed: int, count: int) -> list[Any]:
    return random.Random(seed).sample(list(itertools.product(places(valid), HOSTILE)), count)


def check_values(valid: dict[str, Any], directory: Path, outcomes: Outcomes, seed: int, count: int, inputs: Any = None) -> None:
    outcomes("recipes: values", mutated_values(valid, seed, count) if inputs is None else inputs, load_values(directory), is_read_as_written)


def test_recipes_with_other_values_are_refused_or_read_as_written(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_values(valid, tmp_path, outcomes, seed=0, count=150)
    hostile = (put(copy.deepcopy(valid), place, copy.deepcopy(value)) for place, value in sampled(valid, 0, 200))
    check_values(valid, tmp_path, outcomes, seed=0, count=0, inputs=hostile)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_every_hostile_value_at_every_place_is_refused_or_read_as_written(
    part: int, valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes
) -> None:
    every = itertools.islice(itertools.product(places(valid), HOSTILE), part, None, 3)
    check_values(valid, tmp_path, outcomes, seed=0, count=0, inputs=(put(copy.deepcopy(valid), p, copy.deepcopy(v)) for p, v in every))


@pytest.mark.slow
def test_thousands_of_recipes_with_other_values(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_values(valid, tmp_path, outcomes, seed=1, count=1500)


def check_bytes(valid: dict[str, Any], directory: Path, outcomes: Outcomes, seed: int, count: int) -> None:
    """Damage the text of a recipe, as YAML and as JSON, which another parser reads too."""
    path = directory / "damaged.yaml"

    def load(content: bytes) -> Recipe:
        path.write_bytes(content)
        return open_recipe(path)

    def is_right(content: bytes, recipe: Recipe) -> bool:
        raw = parse_yaml(content, "damaged.yaml")
        if content.startswith(b"{"):
            with contextlib.suppress(ConfigError):  # YAML allows more, such as a comma before a brace
                raw = parse_json(content, "damaged.yaml", ConfigError)
        return is_read_as_written(raw, recipe)

    outcomes("recipes: YAML bytes", mutated_bytes(yaml.safe_dump(valid).encode(), seed, count), load, is_right)
    outcomes("recipes: JSON bytes", mutated_bytes(json.dumps(valid).encode(), seed, count), load, is_right)


def test_damaged_text_of_a_recipe_is_refused_or_read_as_written(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_bytes(valid, tmp_path, outcomes, seed=0, count=60)


@pytest.mark.slow
def test_thousands_of_damaged_texts(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_bytes(valid, tmp_path, outcomes, seed=1, count=700)


TEXTS = (
    "", "1", "-1", "2.5", "null", "true", "[", "{a: 1}", "!!int ''", "&a [*a]", "no", "1e400", ".nan", "'", "# x", "a#b", "a #b",
    "\x00", "\ud800", "9" * 5000,
)  # fmt: skip


def mutated_overrides(valid: dict[str, Any], seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    found = [place for place in places(valid) if place]
    for _ in range(count):
        place = rng.choice(found)
        key = ".".join(map(str, place))
        if rng.random() < 0.3:
            value: Any = valid
            for part in place:
                value = value[part]
            yield f"{key}={json.dumps(value)}"
            continue
        change = rng.randrange(8)
        if change == 0:
            key = key[: rng.randrange(len(key) + 1)]
        elif change == 1:
            key += rng.choice((".", ".x", ".0", ".-1", ".99", ".²", "..a", "." + "1" * 6000, " ", ".\x00"))
        elif change == 2:
            key = rng.choice((".", "=", "..", "é.x", "0", "data.train.0", "train.objective.0.name"))
        yield key + rng.choice(("=", "=", "=", "=", "=", "", "==", ":")) + rng.choice(TEXTS)


def check_overrides(valid: dict[str, Any], directory: Path, outcomes: Outcomes, seed: int, count: int) -> None:
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(valid))

    def is_right(override: str, recipe: Recipe) -> bool:
        key, _, text = override.partition("=")
        loaded: Any = recipe.model_dump()
        for part in key.strip().split("."):
            loaded = loaded[int(part)] if isinstance(loaded, list) else loaded[part]
        given = parse_yaml(text, "override")
        section, _, name = key.strip().partition(".")
        if given is None and name in FOLLOWING.get(section, ()):
            return loaded is not None
        return agrees({"name": given} if key.endswith("objective") and isinstance(given, str) else given, loaded) or (key == "train.baselines")

    outcomes("recipes: overrides", mutated_overrides(valid, seed, count), lambda override: open_recipe(path, [override]), is_right)


def test_damaged_overrides_are_refused_or_applied(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_overrides(valid, tmp_path, outcomes, seed=0, count=100)


@pytest.mark.slow
def test_thousands_of_damaged_overrides(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_overrides(valid, tmp_path, outcomes, seed=1, count=1500)


def check_preflight(valid: dict[str, Any], directory: Path, outcomes: Outcomes, seed: int, count: int) -> None:
    """Look at real small files with what was accepted: preflight passes or refuses."""
    load = load_values(directory)

    def attempt(raw: Any) -> Recipe:
        recipe = load(raw)
        preflight(Experiment(recipe))
        return recipe

    outcomes("recipes: preflight", mutated_values(valid, seed, count), attempt, is_read_as_written)
    assert not (directory / "run").exists(), "something was written"


def test_preflight_passes_or_refuses_what_was_accepted(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_preflight(valid, tmp_path, outcomes, seed=2, count=40)


@pytest.mark.slow
def test_preflight_of_hundreds_of_recipes(valid: dict[str, Any], tmp_path: Path, outcomes: Outcomes) -> None:
    check_preflight(valid, tmp_path, outcomes, seed=3, count=400)


def test_the_undamaged_recipe_is_accepted(valid: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_values(tmp_path)(valid)
    preflight(Experiment(recipe))
    assert is_read_as_written(valid, recipe)
    with pytest.raises(TdistillError):
        load_values(tmp_path)(valid | {"seed": "x"})
