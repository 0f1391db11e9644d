"""Least-squares inverse Q-learning: rewards ±1/c, targets and ends that stay within ±1/(c(1−γ))."""

import itertools
from typing import Any

import builders
import oracles_inverse
import pytest
import torch
from pairwise import pairwise

from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError

KNOBS = pairwise(
    dict(zip(("other", "terminal", "gauge", "stop_target", "anchor"), values, strict=True))
    for values in itertools.product(["untaken", "rollouts"], ["absorbing", "zero"], ["none", "learned"], [False, True], ["none", "tail", "nll"])
)


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(**knobs: Any) -> Any:
    return lambda response: oracles_inverse.ls_iq(response, **knobs)


def mixed(seed: int = 51, **more: Any) -> builders.World:
    """Three responses, the first cut off, the last written by the student; tokens on and off support."""
    shape: dict[str, Any] = {"lengths": (4, 3, 3), "finished": (False, True, True), "expert": (True, True, False)}
    return builders.make_world(seed, **{**shape, **more})


@pytest.fixture
def world() -> builders.World:
    return mixed()


@pytest.mark.parametrize("c", [0.5, 4.0])
@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(knobs: dict[str, Any], c: float) -> None:
    """At c = 4, γ = .5 the bound is ½, so that the clip is at work."""
    given_knobs = {"gamma": 0.5, "c": c, "anchor_weight": 0.7, **knobs}
    builders.assert_equals_oracle(mixed(KNOBS.index(knobs)), bind("ls_iq", **given_knobs), oracle(**given_knobs))


@pytest.mark.parametrize("other", ["untaken", "rollouts"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_oracle_in_both_precisions(world: builders.World, other: str, dtype: torch.dtype) -> None:
    knobs: dict[str, Any] = {"gamma": 0.9, "c": 1.0, "other": other}
    builders.assert_equals_oracle(world, bind("ls_iq", **knobs), oracle(**knobs), dtype)
    builders.assert_equals_oracle(world, bind("ls_iq", other=other), oracle(gamma=0.99, c=0.5, other=other))


@pytest.mark.parametrize("p", [0.05, 1.0])
def test_one_candidate_and_the_whole_vocabulary(p: float) -> None:
    builders.assert_equals_oracle(mixed(p=p), bind("ls_iq", gamma=0.9), oracle(gamma=0.9, c=0.5))


def test_gamma_0_regresses_q_to_the_rewards() -> None:
    made = mixed(off_support=0.0)
    loss_t = builders.loss_and_grads(made, bind("ls_iq", gamma=0.0, c=0.5, other="rollouts"))[0]
    taken = made.logits.detach().gather(-1, made.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss_t[1, :3], (taken - 2.0).square()[1, :3], atol=1e-9, rtol=0)
    torch.testing.assert_close(loss_t[2, :3], (taken + 2.0).square()[2, :3], atol=1e-9, rtol=0)


def test_the_end_is_worth_the_rewards_for_ever() -> None:
    """Q → ±1/(c(1−γ)), the bound: nothing is left to learn there."""
    made = builders.make_world(seed=5, lengths=(1, 1), finished=(True, True), expert=(True, False), off_support=0.0, p=1.0)
    made.logits.data.fill_(-20.0)
    made.logits.data[0].scatter_(-1, made.tokens[0].unsqueeze(-1), 20.0)
    for other in ("untaken", "rollouts"):
        loss_t, grad, _ = builders.loss_and_grads(made, bind("ls_iq", gamma=0.9, c=0.5, other=other))
        assert loss_t.abs().max() < 1e-12
        assert grad.abs().max() < 1e-9
    zero = builders.loss_and_grads(made, bind("ls_iq", gamma=0.9, c=0.5, other="rollouts", terminal="zero"))[0]
    assert zero[:, 0].tolist() == pytest.approx([18.0**2, 18.0**2])


@pytest.mark.parametrize("stop_target", [True, False])
def test_targets_never_leave_the_bound(stop_target: bool) -> None:
    """A next state of huge value counts as 1/(c(1−γ)) and, beyond it, gives no gradient either way."""
    made = mixed(off_support=0.0, p=1.0)
    made.logits.data[1, 1] = 1e3
    loss_t = bind("ls_iq", gamma=0.9, c=0.5, other="rollouts", stop_target=stop_target)(builders.steps_of(made)).loss_t
    q = made.logits.detach()[1, 0, made.tokens[1, 0]]
    assert loss_t[1, 0].item() == pytest.approx((q - 20.0).square().item())
    assert torch.autograd.grad(loss_t[1, 0], made.logits)[0][1, 1].eq(0).all()


@pytest.mark.parametrize("stop_target", [False, True])
def test_stop_target_cuts_the_gradient_through_the_next_state(stop_target: bool) -> None:
    made = mixed(off_support=0.0)
    loss_t = bind("ls_iq", stop_target=stop_target)(builders.steps_of(made)).loss_t
    assert torch.autograd.grad(loss_t[1, 0], made.logits)[0][1, 1].eq(0).all() == stop_target


def test_is_sqil_up_to_rewards_where_nothing_is_clipped(world: builders.World) -> None:
    """With r → r + k at every step Q moves by k/(1−γ): ls_iq at c = 2 on Q is sqil on Q + ½/(1−γ), the ends alike."""
    knobs: dict[str, Any] = {"gamma": 0.9, "other": "rollouts", "gauge": "none"}
    ours = builders.loss_and_grads(world, bind("ls_iq", c=2.0, stop_target=False, **knobs))[0]
    world.logits.data += 0.5 / (1 - 0.9)
    theirs = builders.loss_and_grads(world, bind("sqil", **knobs))[0]
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gauge": "lse"}, "gauge='lse'.*'none' or 'learned'"),
        ({"gamma": 1.0}, "gamma=1.0.*less than 1"),
        ({"c": 0.0}, "c=0.0"),
        ({"other_weight": 1.0}, "no argument 'other_weight'"),
    ],
)
def test_refuses_what_it_cannot_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind("ls_iq", **arguments)


def test_needs_to_know_who_took_a_step(world: builders.World) -> None:
    assert bind("ls_iq").needs == {"expert"}
    with pytest.raises(ConfigError, match="expert_t"):
        bind("ls_iq")(builders.steps_of(world, needs=frozenset()))


@pytest.mark.parametrize("gauge", ["none", "learned"])
def test_gradcheck(gauge: str) -> None:
    made = mixed(lengths=(2, 1, 2), vocab=4)
    builders.assert_gradcheck(made, bind("ls_iq", gauge=gauge, gamma=0.9, other="rollouts", stop_target=False))
