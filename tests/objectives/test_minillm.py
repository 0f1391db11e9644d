"""MiniLLM's policy gradient against its loop, its reductions and its conventions."""

import itertools
import math
from dataclasses import replace
from typing import Any

import builders
import oracles
import oracles_minillm
import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError

SUPPORTS = ["tail", "proj", "uniform", "dense"]
INF = float("inf")
VALUES = {
    "support": SUPPORTS,
    "gamma": [0.0, 0.9, 1.0],
    "length_normalization": [True, False],
    "clip_epsilon": [0.2, INF],
    "reward_clip": [None, 0.7],
    "w_max": [0.9, INF],
}
KNOBS = pairwise(dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values()))


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(world: builders.World, **knobs: Any) -> Any:
    rows = iter(world.behaviour_logp.tolist())
    return lambda response: [step.loss for step in oracles_minillm.minillm(response, next(rows)[: len(response)], **knobs)]


def results(world: builders.World, name: str = "minillm", **knobs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return builders.loss_and_grads(world, bind(name, **knobs))


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def with_behaviour(world: builders.World, log_weight: float = 0.0) -> builders.World:
    """Every token drawn with e^−log_weight times the probability that the student gives it."""
    log_pi = torch.zeros_like(world.behaviour_logp)
    for b, response in enumerate(world.responses()):
        log_pi[b, : len(response)] = torch.stack([-x.detach() for x in oracles.nll(response)])
    return replace(world, behaviour_logp=log_pi - log_weight)


@pytest.fixture
def world() -> builders.World:
    """Off-support tokens, one cut-off, and a token that nobody sampled."""
    made = builders.make_world(seed=34, lengths=(6, 4, 2), finished=(True, False, True), p=0.8)
    made.behaviour_logp[0, 2] = torch.nan
    return made


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(world: builders.World, knobs: dict[str, Any]) -> None:
    builders.assert_equals_oracle(world, bind("minillm", **knobs), oracle(world, **knobs))


@pytest.mark.parametrize("support", SUPPORTS)
def test_equals_the_oracle_in_float32(world: builders.World, support: str) -> None:
    builders.assert_equals_oracle(world, bind("minillm", support=support), oracle(world, support=support), torch.float32)


@pytest.mark.parametrize("knobs", [{}, {"gamma": 0.9, "length_normalization": False, "reward_clip": 0.7, "w_max": 1.1}], ids=str)
def test_metrics_equal_the_oracle(world: builders.World, knobs: dict[str, Any]) -> None:
    metrics = bind("minillm", **knobs)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    nan = float("nan")
    for b, response in enumerate(world.responses()):
        behaviour = world.behaviour_logp[b].tolist()[: len(response)]
        for t, step in enumerate(oracles_minillm.minillm(response, behaviour, **knobs)):
            want = {
                "td/reward": step.reward,
                "td/off_support_fraction": float(response.tokens[t] not in response.candidates[t]),
                "minillm/return": nan if step.later is None else step.later,
                "minillm/ratio": step.weight,
                "minillm/clipped_fraction": nan if step.clipped is None else float(step.clipped),
            }
            assert {key: x[b, t].item() for key, x in metrics.items()} == pytest.approx(want, abs=1e-9, nan_ok=True)


def test_the_oracle_was_asked_about_both_sides_of_the_clip(world: builders.World) -> None:
    sides = set()
    for response, behaviour in zip(world.responses(), world.behaviour_logp.tolist(), strict=True):
        for step in oracles_minillm.minillm(response, behaviour[: len(response)]):
            if step.later is not None:
                sides.add((step.clipped, step.later > 0, step.weight > 1))
    assert {(True, True, True), (True, False, False), (False, False, True), (False, True, False)} <= sides


@pytest.mark.parametrize("support", SUPPORTS)
def test_gradcheck(support: str) -> None:
    """Of the part without a stopped gradient: γ = 0, weights that are 1."""
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    made.behaviour_logp.fill_(torch.nan)
    builders.assert_gradcheck(made, bind("minillm", gamma=0.0, support=support))


# --- the return ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "want"),
    [
        ({}, (1.0, 6.0)),  # the mean of what follows
        ({"length_normalization": False}, (2.0, 6.0)),
        ({"length_normalization": False, "gamma": 0.5}, (-1.0, 6.0)),
        ({"length_normalization": False, "gamma": 0.0}, (-4.0, 6.0)),
        ({"gamma": 0.5}, (-0.5, 6.0)),
        ({"reward_clip": 5.0, "length_normalization": False}, (1.0, 5.0)),
    ],
    ids=str,
)
def test_returns_by_hand(knobs: dict[str, Any], want: tuple[float, float]) -> None:
    """Rewards −7, −4 and 6; the last token has nothing after it."""
    made = builders.make_world(lengths=(3,), finished=(True,))
    made.teacher_logp.copy_(made.logits.detach().log_softmax(-1))
    for t, reward in enumerate((-7.0, -4.0, 6.0)):
        made.teacher_logp[0, t, made.tokens[0, t]] += reward
    later = bind("minillm", **knobs)(builders.steps_of(made)).metrics["minillm/return"][0]
    assert later.tolist() == pytest.approx([*want, math.nan], nan_ok=True)


def test_however_a_response_ends_its_return_ends_with_it(world: builders.World) -> None:
    assert_same(results(replace(world, finished=(False, True, False))), results(world))


# --- what it reduces to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("knobs", [{"gamma": 0.0}, {"reward_clip": 0.0}], ids=str)
def test_without_a_return_it_is_reverse_kl_under_the_weights(world: builders.World, support: str, knobs: dict[str, Any]) -> None:
    on_policy = with_behaviour(world)
    assert_same(results(on_policy, support=support, **knobs), results(on_policy, "reverse_kl", support=support))
    loss, grad, _ = results(with_behaviour(world, math.log(3.0)), support=support, **knobs)
    loss_1, grad_1, _ = results(world, "reverse_kl", support=support)
    assert_same((loss, grad), (3 * loss_1, 3 * grad_1))


def test_one_token_is_reverse_kl() -> None:
    made = with_behaviour(builders.make_world(seed=4, lengths=(1, 1), finished=(True, False)))
    assert_same(results(made), results(made, "reverse_kl"))


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_teacher_of_its_own_pays_nothing(support: str) -> None:
    made = builders.make_world(seed=3, lengths=(4, 3), finished=(True, False))
    if support == "uniform":  # knows the teacher only where its tail is even
        made = builders.with_even_tail(made)
    made.logits.data.copy_(made.teacher_logp + 1.7)
    for x in results(made, support=support):
        assert x.abs().max() < 1e-12


def test_p_1_is_the_dense_loss() -> None:
    made = builders.make_world(seed=5, lengths=(4, 2), finished=(True, False), p=1.0)
    *others, dense = (results(made, support=s) for s in SUPPORTS)
    for other in others:
        assert_same(other, dense)


# --- weights and clip ------------------------------------------------------------------------------------------------


def test_a_token_that_nobody_sampled_counts_as_on_policy(world: builders.World) -> None:
    human = replace(world, behaviour_logp=torch.full_like(world.behaviour_logp, torch.nan))
    assert_same(results(human), results(with_behaviour(world)))


def test_the_weight_is_capped(world: builders.World) -> None:
    for w_max in (0.5, 1.0, 1.5):
        ratio = bind("minillm", w_max=w_max)(builders.steps_of(world)).metrics["minillm/ratio"][world.mask]
        assert ratio.max() == w_max


@pytest.mark.parametrize(("weight", "sign", "moves"), [(1.5, 1, False), (1.5, -1, True), (0.5, 1, True), (0.5, -1, False), (1.1, 1, True)])
def test_the_clip_stops_what_would_lead_further_from_the_data(weight: float, sign: int, moves: bool) -> None:
    """Of the long-term term: a weight outside 1 ± ε stays where R would push it further, and moves where R pulls it back."""
    made = with_behaviour(builders.make_world(lengths=(2,), finished=(True,)), math.log(weight))
    made.teacher_logp[0, 1, made.tokens[0, 1]] = made.logits.detach().log_softmax(-1)[0, 1, made.tokens[0, 1]] + 2.0 * sign
    bound = [bind("minillm", gamma=gamma) for gamma in (1.0, 0.0)]
    whole, single = (builders.loss_and_grads(made, objective) for objective in bound)
    long_term = whole[1][0, 0] - single[1][0, 0]
    assert (long_term.abs().max() > 0.1).item() is moves
    clipped = bound[0](builders.steps_of(made)).metrics["minillm/clipped_fraction"][0, 0]
    assert clipped.item() == float(not moves)


# --- arguments -------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    world = builders.make_world(seed=8, lengths=(4, 3))
    assert_same(results(world), results(world, gamma=1.0, length_normalization=True, clip_epsilon=0.2, reward_clip=None, w_max=INF))
    assert bind("minillm").needs == {"taken", "log_z", "behaviour"}
    assert bind("minillm", support="dense").needs == {"taken", "log_z", "behaviour", "dense"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 1.1),
        ("gamma", math.nan),
        ("length_normalization", "yes"),
        ("length_normalization", 1),
        ("clip_epsilon", 0.0),
        ("clip_epsilon", -0.2),
        ("clip_epsilon", math.nan),
        ("clip_epsilon", None),
        ("reward_clip", -1.0),
        ("reward_clip", INF),
        ("w_max", 0.0),
        ("w_max", None),
        ("support", "top"),
        ("epsilon", 0.2),
    ],
)
def test_bad_arguments_are_errors(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"'?{key}"):
        bind("minillm", **{key: value})
