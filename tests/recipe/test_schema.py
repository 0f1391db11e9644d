"""A recipe's sections are resolved once: what one takes from another stands in it, and is written back as it is read."""

import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tdistill.experiment.recipe_checks import open_recipe
from tdistill.recipe.read import load_recipe
from tdistill.recipe.schema import CandidateRule, MethodConfig, Recipe
from tdistill.recipe.text import dump_yaml, parse_yaml
from tdistill.runtime.errors import ConfigError


def raw(**sections: Any) -> dict[str, Any]:
    needed = {
        "output_dir": "runs/x",
        "data": {"train": "a.jsonl", "valid": "b.jsonl", "test": "c.jsonl"},
        "teacher": {"teacher_model_name_or_path": "t"},
        "student": {"num_hidden_layers": 2},
        "train": {"objective": "nll"},
    }
    return {**needed, **sections}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(raw(**sections))


def seeds(found: Recipe) -> dict[str, Any]:
    assert found.sft is not None
    return {"rollout": found.rollout.seed, "sft": found.sft.seed, "train": found.train.seeds, "evaluation": found.evaluation.seed}


def test_one_seed_sets_those_that_are_left_out() -> None:
    assert seeds(recipe(sft={})) == {"rollout": 17, "sft": 17, "train": [17], "evaluation": 1_000_020}
    assert seeds(recipe(sft={}, seed=3)) == {"rollout": 3, "sft": 3, "train": [3], "evaluation": 1_000_006}


def test_a_seed_of_its_own_moves_no_other_one() -> None:
    plain = seeds(recipe(sft={}))
    objective = {"objective": "nll"}
    assert seeds(recipe(sft={}, rollout={"seed": 5})) == plain | {"rollout": 5}
    assert seeds(recipe(sft={"seed": 5})) == plain | {"sft": 5}
    assert seeds(recipe(sft={}, train={**objective, "seeds": [5, 6]})) == plain | {"train": [5, 6]}
    assert seeds(recipe(sft={}, evaluation={"seed": 5})) == plain | {"evaluation": 5}


def test_a_null_is_filled_in_as_a_missing_key_is() -> None:
    nulls = {"rollout": {"seed": None, "top_p": None}, "evaluation": {"seed": None, "max_completion_length": None}, "sft": {"seed": None}}
    assert recipe(**nulls) == recipe(sft={})


def test_the_largest_seed_leaves_the_evaluation_another_one() -> None:
    found = recipe(seed=2**32 - 1)
    assert found.evaluation.seed == 1_000_002 != found.rollout.seed


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"objective": "nll", "seeds": []}}, "at least 1 item"),
        ({"train": {"objective": "nll", "seeds": [3, 4, 3]}}, "seeds must differ from each other"),
        ({"train": {"objective": "nll", "seeds": [True]}}, "valid integer"),
        ({"train": {"objective": "nll", "seeds": [2**32]}}, "less than 4294967296"),
        ({"rollout": {"seed": -1}}, "greater than or equal to 0"),
        ({"sft": {"seed": 1.5}}, "valid integer"),
        ({"rollout": {"seed": 9}, "evaluation": {"seed": 9}}, "evaluation.seed and rollout.seed are both 9"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**sections)


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"seed": 1.5}, ("seed",)),
        ({"seed": True}, ("seed",)),
        ({"seed": 2**40}, ("seed",)),
        ({"rollout": {"max_completion_length": "long"}}, ("rollout", "max_completion_length")),
        ({"rollout": {"teacher_top_p": 1.5}}, ("rollout", "teacher_top_p")),
        ({"rollout": {"teacher_top_p": "most"}}, ("rollout", "teacher_top_p")),
    ],
)
def test_a_wrong_value_is_reported_where_it_stands_and_nowhere_else(sections: dict[str, Any], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        recipe(sft={}, **sections)
    assert [error["loc"] for error in refused.value.errors()] == [place]


def test_lengths_and_the_nucleus_of_sampling_are_taken_from_the_roll_outs() -> None:
    found = recipe(rollout={"teacher_top_p": 0.5, "max_completion_length": 64})
    assert (found.rollout.top_p, found.evaluation.max_completion_length) == (0.5, 64)
    own = recipe(rollout={"teacher_top_p": 0.5, "top_p": 1.0}, evaluation={"max_completion_length": 32})
    assert (own.rollout.top_p, own.evaluation.max_completion_length) == (1.0, 32)


def test_a_resolved_recipe_says_every_seed_and_reads_as_itself() -> None:
    for found in (recipe(), recipe(sft={}, seed=4, train={"objective": "nll", "seeds": [1, 2], "baselines": {"a": "reverse_kl"}})):
        dumped = found.model_dump()
        assert dumped["rollout"]["seed"] == found.seed
        assert dumped["train"]["seeds"]
        assert dumped["evaluation"]["seed"]
        assert Recipe.model_validate(dumped) == found
        assert Recipe.model_validate(parse_yaml(dump_yaml(dumped), "recipe.yaml")) == found


@pytest.mark.parametrize("name", ["teacher", "report", "evaluation", "rollouts-train", "a b"])
def test_a_baseline_has_no_name_that_means_something_else_among_the_results(name: str) -> None:
    with pytest.raises(ValidationError, match="can't name a baseline"):
        recipe(train={"objective": "nll", "baselines": {name: "reverse_kl"}})


def test_a_baseline_is_trained_as_the_student_is_but_for_what_it_sets() -> None:
    own = {"objective": "reverse_kl", "arguments": {"learning_rate": 1e-3}, "on_policy": {"lmbda": 0.25}}
    train = {"objective": "nll", "arguments": {"max_steps": 3}, "teacher_top_p": 0.5, "baselines": {"own": own, "plain": "forward_kl"}}
    methods = recipe(train=train).train.methods()
    assert list(methods) == ["own", "plain", "distilled"]
    assert all(type(method) is MethodConfig and method.teacher_top_p == 0.5 for method in methods.values())
    assert methods["own"].arguments == {"max_steps": 3, "learning_rate": 1e-3}
    assert methods["own"].on_policy is not None
    assert methods["plain"].on_policy is None
    assert methods["plain"] == methods["distilled"].model_copy(update={"objective": {"name": "forward_kl"}})


@pytest.mark.parametrize(("name", "value"), [("top_k", 2.5), ("top_k", 0.5), ("min_p", 1.5), ("adaptive", 0.0)])
def test_a_candidate_rule_out_of_its_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match="value|greater than 0"):
        CandidateRule(name=name, value=value)


def sections_of(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [found for inner in typing.get_args(hint) for found in sections_of(inner)]


def every_key(section: type[BaseModel], place: str = "") -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, field in section.model_fields.items():
        here = f"{place}.{name}".lstrip(".")
        found[here] = field.description
        for inner in sections_of(field.annotation):
            found |= every_key(inner, here)
    return found


def test_every_key_of_a_recipe_is_described_by_a_phrase() -> None:
    keys = every_key(Recipe)
    assert {"train.on_policy.lmbda", "rollout.seed", "train.baselines.value.target_tau"} <= keys.keys()
    assert [key for key, text in keys.items() if not text] == []
    # A fragment such as "of sampling" leans on the key beside it.
    leaning = ("of ", "and ", "or ", "which ", "that ", "only ", "with ")
    fragments = [key for key, text in keys.items() if text is not None and text.startswith(leaning) and not text.startswith("with init: ")]
    assert fragments == []


def test_a_recipe_is_read_without_what_reads_its_sections(tiny_recipe: Path) -> None:
    unknown = ["train.objective={name: iq_lern}"]
    assert load_recipe(tiny_recipe, unknown).train.objective == {"name": "iq_lern"}
    with pytest.raises(ConfigError, match="Unknown objective 'iq_lern'"):
        open_recipe(tiny_recipe, unknown)
