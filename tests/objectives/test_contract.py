"""Needs follow from ``Steps``, metrics carry no gradient, an anchor is a second term, and what decides a loss is in its identity."""

import ast
import inspect
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import builders
import pytest
import torch

from tdistill import objectives
from tdistill.mdp.steps import Steps
from tdistill.objectives import OBJECTIVES, bind
from tdistill.objectives.contract import FIELDS, NEEDS

ANCHORED = [name for name in OBJECTIVES if OBJECTIVES[name].anchor]


def test_every_optional_field_answers_a_need_or_comes_with_every_batch() -> None:
    optional = {f.name for f in fields(Steps) if f.default is None}
    assert set(FIELDS.values()) == optional - {"teacher_taken_logp_t", "vocab_size"}
    assert frozenset(FIELDS) | {"other"} == NEEDS


@pytest.mark.parametrize("name", OBJECTIVES)
def test_metrics_carry_no_gradient_and_the_loss_does(name: str) -> None:
    world = builders.make_world(expert=(True, False))
    out = bind(name)(builders.steps_of(world))
    assert out.loss_t.requires_grad
    assert not any(metric.requires_grad for metric in out.metrics.values())


def test_no_algorithm_imports_another() -> None:
    folder = Path(objectives.__file__).parent
    helpers = {"bind", "contract", "registry", "parts"}
    for path in folder.glob("*.py"):
        if path.stem in helpers | {"__init__"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tdistill.objectives"):
                inner = node.module.split(".")[2:] or [alias.name for alias in node.names]
                assert inner[0] in helpers, f"{path.stem} imports {node.module}"


@pytest.mark.parametrize("anchor", ["tail", "nll"])
@pytest.mark.parametrize("name", ANCHORED)
def test_an_anchor_is_a_term_of_the_weighted_sum(name: str, anchor: str) -> None:
    world = builders.make_world(seed=5, lengths=(3, 3), finished=(True, False), expert=(True, False))
    anchored = bind(name, anchor=anchor, anchor_weight=0.7)
    summed = bind([{"name": name, "anchor": "none"}, {"name": anchor, "weight": 0.7}])
    for got, want in zip(builders.loss_and_grads(world, anchored), builders.loss_and_grads(world, summed), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    assert anchored.needs == summed.needs


@pytest.mark.parametrize("name", ANCHORED)
def test_an_anchor_leaves_the_names_of_the_metrics(name: str) -> None:
    steps = builders.steps_of(builders.make_world())
    assert bind(name, anchor="tail")(steps).metrics.keys() == bind(name, anchor="none")(steps).metrics.keys()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_identity_has_every_argument_and_is_the_same_after_json(name: str) -> None:
    (term,) = bind(name).identity()
    assert json.loads(json.dumps(term, allow_nan=False)) == term
    assert list(term["arguments"]) == sorted(OBJECTIVES[name].own_defaults())
    assert (term["version"], term["weight"]) == (OBJECTIVES[name].version, 1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_default_that_is_given_changes_nothing(name: str) -> None:
    defaults = OBJECTIVES[name].defaults()
    assert bind(name, **defaults).identity() == bind(name).identity()


def test_a_default_that_changes_makes_another_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    before, given = bind("csil").identity(), bind("csil", gamma=0.99).identity()
    monkeypatch.setitem(inspect.unwrap(OBJECTIVES["csil"].fn).__kwdefaults__, "gamma", 0.5)
    assert bind("csil").identity() != before
    assert bind("csil").identity()[0]["arguments"]["gamma"] == 0.5
    assert bind("csil", gamma=0.99).identity() == given


@pytest.mark.parametrize("change", [{"version": 2}, {"anchor": "none"}])
def test_a_version_or_the_default_of_an_anchor_that_changes_makes_another_objective(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bind("iq_learn").identity()
    monkeypatch.setitem(OBJECTIVES, "iq_learn", replace(OBJECTIVES["iq_learn"], **change))
    assert bind("iq_learn").identity() != before


def test_the_version_of_an_anchor_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    anchored, bare = bind("csil", anchor="tail").identity(), bind("csil").identity()
    monkeypatch.setitem(OBJECTIVES, "tail", replace(OBJECTIVES["tail"], version=2))
    assert bind("csil", anchor="tail").identity() != anchored
    assert bind("csil").identity() == bare


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("iq_learn", "bellman_distill"),
        ("csil", [{"name": "csil"}]),
        ("csil", [{"name": "csil", "weight": 1}]),
        ({"name": "csil", "gamma": 1}, {"name": "csil", "gamma": 1.0}),
        ({"name": "csil", "anchor_weight": 2.0}, "csil"),  # without an anchor its weight has no effect
    ],
)
def test_two_ways_to_write_the_same_objective_have_one_identity(one: Any, other: Any) -> None:
    assert bind(one).identity() == bind(other).identity()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("csil", {"name": "csil", "weight": 2.0}),
        ("csil", {"name": "csil", "anchor": "tail"}),
        ({"name": "csil", "anchor": "tail"}, {"name": "csil", "anchor": "nll"}),
        ({"name": "csil", "anchor": "tail"}, {"name": "csil", "anchor": "tail", "anchor_weight": 0.5}),
        ({"name": "iq_learn", "phi": "linear"}, {"name": "iq_learn", "phi": "linear", "alpha": float("inf")}),
        ("nll", [{"name": "nll"}, {"name": "forward_kl"}]),
    ],
)
def test_two_objectives_with_other_losses_or_arguments_have_two_identities(one: Any, other: Any) -> None:
    assert bind(one).identity() != bind(other).identity()


def test_an_identity_can_be_changed_without_changing_the_objective() -> None:
    bound = bind("csil", anchor="tail")
    first = bound.identity()
    first[0]["arguments"]["gamma"] = first[0]["anchor"]["weight"] = 0.0
    assert bound.identity() != first
