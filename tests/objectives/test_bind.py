"""A name and arguments, or a weighted sum of them: checked before any model loads."""

import math
from typing import Any

import builders
import pytest
import torch

from tdistill.objectives import OBJECTIVES, BoundObjective, bind
from tdistill.objectives.contract import NEEDS
from tdistill.runtime.errors import ConfigError


def on(world: builders.World, objective: Any) -> torch.Tensor:
    return bind(objective)(builders.steps_of(world)).loss_t[world.mask]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_binds_with_its_defaults(name: str) -> None:
    bound = bind(name)
    assert isinstance(bound, BoundObjective)
    assert (bound.name, bound.arguments, bound.describe()) == (name, {}, name)
    assert bound.needs <= NEEDS
    loss_t = bound(builders.steps_of(builders.make_world(), needs=bound.needs)).loss_t
    assert loss_t.shape == (2, 3)
    assert loss_t.abs().sum() > 0


def test_bellman_distill_is_iq_learn() -> None:
    assert OBJECTIVES["bellman_distill"] is OBJECTIVES["iq_learn"]
    world = builders.make_world()
    assert torch.equal(on(world, "bellman_distill"), on(world, "iq_learn"))


def test_arguments_reach_the_objective_and_the_description() -> None:
    world, bound = builders.make_world(), bind("iq_learn", alpha=10, gauge="max", anchor="none")
    assert bound.describe() == "iq_learn(alpha=10.0, gauge=max, anchor=none)"
    got = bound(builders.steps_of(world)).loss_t
    want = OBJECTIVES["iq_learn"].fn(builders.steps_of(world), alpha=10.0, gauge="max").loss_t
    assert torch.equal(got, want)
    assert not torch.equal(got[world.mask], on(world, "iq_learn"))
    assert torch.equal(on(world, {"name": "iq_learn", "alpha": 10.0, "gauge": "max", "anchor": "none"}), got[world.mask])


@pytest.mark.parametrize(
    ("objective", "arguments", "message"),
    [
        ("iq_lern", {}, "'iq_lern'.*'iq_learn'"),
        ("reverse-kl", {}, "'reverse_kl'"),
        ("zzz", {}, "Known: .*forward_kl.*nll"),
        ("iq_learn", {"gama": 0.9}, "no argument 'gama'.*'gamma'"),
        ("iq_learn", {"qmin": -1.0}, "'q_min'"),
        ("forward_kl", {"temperature": 2.0}, "'loss_temperature'"),
        ("nll", {"gamma": 0.9}, "no argument 'gamma'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(objective: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(objective, **arguments)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", -0.01),
        ("gamma", 1.01),
        ("gamma", math.nan),
        ("gamma", "0.9"),
        ("gamma", True),
        ("alpha", 0.0),
        ("alpha", -1.0),
        ("alpha", math.nan),
        ("alpha", None),
        ("alpha", [1.0]),
        ("anchor_weight", -1.0),
        ("q_min", "low"),
        ("q_min", math.nan),
        ("gauge", "maximum"),
        ("gauge", None),
        ("phi", "chi"),
        ("estimator", "mean"),
        ("terminal", 0.0),
        ("anchor", True),
    ],
)
def test_a_wrong_type_or_an_impossible_value_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"'iq_learn'.*{key}="):
        bind("iq_learn", **{key: value})


@pytest.mark.parametrize(("key", "value"), [("gamma", 0), ("gamma", 1.0), ("alpha", math.inf), ("q_min", None), ("q_min", -3)])
def test_the_ends_of_each_range_are_allowed(key: str, value: Any) -> None:
    world = builders.make_world()
    assert bind("iq_learn", **{key: value})(builders.steps_of(world)).loss_t.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phi": "linear"}, "phi='linear'"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"gamma": 1.0}, "gamma < 1"),
    ],
)
def test_absorbing_needs_a_best_reward_and_a_discount(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind("iq_learn", terminal="absorbing", **arguments)
    assert bind("iq_learn", terminal="absorbing").needs == {"log_z", "expert"}


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_a_temperature_is_refused_with_a_tail_bucket_only(name: str) -> None:
    with pytest.raises(ConfigError, match=r"loss_temperature=2\.0"):
        bind(name, loss_temperature=2.0)
    for support in ("proj", "dense"):
        assert bind(name, support=support, loss_temperature=2.0).arguments["loss_temperature"] == 2.0
    with pytest.raises(ConfigError, match=r"loss_temperature=0\.0"):
        bind(name, support="proj", loss_temperature=0.0)


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        ({}, {"log_z"}),
        ({"gauge": "none", "anchor": "none"}, set()),
        ({"gauge": "lse", "anchor": "none"}, {"log_z"}),
        ({"gauge": "learned", "anchor": "none"}, {"value"}),
        ({"gauge": "mean_support", "anchor": "nll"}, {"log_z", "taken"}),
        ({"gauge": "max", "anchor": "tail"}, {"log_z", "max"}),
    ],
)
def test_needs_follow_the_arguments(arguments: dict[str, Any], needs: set[str]) -> None:
    assert bind("iq_learn", **arguments).needs == needs | {"expert"}


def test_a_weighted_sum_adds_losses_unites_needs_and_prefixes_metrics() -> None:
    world = builders.make_world()
    terms = [{"name": "iq_learn", "weight": 2, "gauge": "max"}, {"name": "reverse_kl", "weight": 0.5}, {"name": "nll"}]
    bound = bind(terms)
    out = bound(builders.steps_of(world, needs=bound.needs))
    parts = {t["name"]: on(world, {k: v for k, v in t.items() if k != "weight"}) for t in terms}
    want = 2 * parts["iq_learn"] + 0.5 * parts["reverse_kl"] + parts["nll"]
    torch.testing.assert_close(out.loss_t[world.mask], want, atol=1e-12, rtol=0)
    assert bound.needs == {"max", "log_z", "taken", "expert"}
    assert bound.describe() == "2·iq_learn(gauge=max) + 0.5·reverse_kl + 1·nll"
    for name, loss_t in parts.items():
        assert torch.equal(out.metrics[f"{name}/loss"][world.mask], loss_t.detach())
        assert not out.metrics[f"{name}/loss"].requires_grad
    single = bind("iq_learn", gauge="max")(builders.steps_of(world)).metrics
    assert {k for k in out.metrics if not k.endswith("/loss")} == {f"iq_learn/{k}" for k in single}
    torch.testing.assert_close(out.metrics["iq_learn/td/reward"], single["td/reward"], equal_nan=True)


def test_the_gradient_of_a_weighted_sum_is_the_weighted_sum_of_gradients() -> None:
    world = builders.make_world(seed=3)
    terms = [{"name": "iq_learn", "weight": 2.0, "alpha": 3.0}, {"name": "forward_kl", "weight": 0.5}]
    got = builders.loss_and_grads(world, bind(terms))[1]
    one, two = (builders.loss_and_grads(world, b)[1] for b in (bind("iq_learn", alpha=3.0), bind("forward_kl")))
    torch.testing.assert_close(got, 2.0 * one + 0.5 * two, atol=1e-12, rtol=0)


def test_the_same_objective_twice_keeps_both_metrics_apart() -> None:
    world = builders.make_world()
    out = bind([{"name": "forward_kl"}, {"name": "forward_kl", "support": "proj"}])(builders.steps_of(world))
    assert set(out.metrics) == {"forward_kl_0/loss", "forward_kl_1/loss"}
    assert not torch.equal(out.metrics["forward_kl_0/loss"], out.metrics["forward_kl_1/loss"])


def test_a_list_of_one_is_that_objective_and_a_lone_weight_counts() -> None:
    world = builders.make_world()
    assert bind([{"name": "nll"}]).describe() == "nll"
    torch.testing.assert_close(on(world, {"name": "nll", "weight": 3.0}), 3.0 * on(world, "nll"))


@pytest.mark.parametrize("weight", [0, -1.0, math.inf, math.nan, "2", True, None])
def test_a_weight_must_be_a_positive_number(weight: Any) -> None:
    with pytest.raises(ConfigError, match="weight of objective 'nll'"):
        bind([{"name": "nll", "weight": weight}, {"name": "forward_kl"}])


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ([], "empty list.*nll"),
        ([{"weight": 1.0}], "needs a name"),
        ([{"name": "nll"}, {"name": "foward_kl"}], "'forward_kl'"),
        ([{"name": "iq_learn", "weigth": 2.0}], "'weight'"),
        ({"name": "iq_learn", "gamma": 2.0}, "gamma=2.0"),
    ],
)
def test_a_malformed_sum_is_refused(objective: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(objective)


def test_keyword_arguments_belong_to_a_name() -> None:
    with pytest.raises(ConfigError, match="only with an objective's name"):
        bind([{"name": "iq_learn"}], alpha=1.0)


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        ({"name": "forward_kl"}, "log_z_t"),
        ({"name": "iq_learn", "gauge": "max", "anchor": "none"}, "max_t"),
        ({"name": "csil"}, "value_t"),
        ({"name": "csil", "gauge": "none", "target_network": True}, "target"),
        ({"name": "reverse_kl", "support": "dense"}, "dense"),
        ({"name": "actor_critic"}, "log_z_t"),
    ],
)
def test_a_head_that_gives_too_little_is_told_what_is_missing(objective: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"needs Steps\.{field}, which this head did not give"):
        bind(objective)(builders.steps_of(builders.make_world(), needs=frozenset()))
