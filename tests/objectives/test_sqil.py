"""Soft Q imitation learning: rewards 1 and 0, the other steps it may use, its absorbing ends."""

import itertools
from dataclasses import replace
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
    return lambda response: oracles_inverse.sqil(response, **knobs)


def mixed(seed: int = 41, **more: Any) -> builders.World:
    """Three responses, the first cut off, the last written by the student; tokens on and off support."""
    shape: dict[str, Any] = {"lengths": (4, 3, 3), "finished": (False, True, True), "expert": (True, True, False)}
    return builders.make_world(seed, **{**shape, **more})


@pytest.fixture
def world() -> builders.World:
    return mixed()


def loss_of(world: builders.World, **knobs: Any) -> torch.Tensor:
    return builders.loss_and_grads(world, bind("sqil", **knobs))[0]


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(knobs: dict[str, Any]) -> None:
    given_knobs = {"gamma": 0.9, "other_weight": 0.3, "anchor_weight": 0.7, **knobs}
    builders.assert_equals_oracle(mixed(KNOBS.index(knobs)), bind("sqil", **given_knobs), oracle(**given_knobs))


@pytest.mark.parametrize("other", ["untaken", "rollouts"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_defaults_equal_the_oracle(world: builders.World, other: str, dtype: torch.dtype) -> None:
    builders.assert_equals_oracle(world, bind("sqil", gamma=0.9, other=other), oracle(gamma=0.9, other=other), dtype)
    builders.assert_equals_oracle(world, bind("sqil", other=other), oracle(gamma=0.99, other=other))


@pytest.mark.parametrize("p", [0.05, 1.0])
def test_one_candidate_and_the_whole_vocabulary(p: float) -> None:
    """A lone candidate has nothing untaken; at p = 1 every token but the one taken is."""
    made = mixed(p=p)
    builders.assert_equals_oracle(made, bind("sqil", gamma=0.9), oracle(gamma=0.9))
    if p < 0.1:
        assert torch.equal(loss_of(made), loss_of(made, other_weight=0.0))


def test_gamma_0_regresses_q_to_the_rewards() -> None:
    made = mixed(off_support=0.0, p=1.0)
    loss_t, q = loss_of(made, gamma=0.0), made.logits.detach()
    taken = q.gather(-1, made.tokens.unsqueeze(-1)).squeeze(-1)
    policy = q.softmax(-1)
    others = (policy * q.square()).sum(-1) - policy.gather(-1, made.tokens.unsqueeze(-1)).squeeze(-1) * taken.square()
    torch.testing.assert_close(loss_t[1, :3], ((taken - 1.0).square() + others)[1, :3], atol=1e-9, rtol=0)
    rollouts = loss_of(made, gamma=0.0, other="rollouts", other_weight=2.0)
    torch.testing.assert_close(rollouts[2, :3], 2.0 * taken[2, :3].square(), atol=1e-9, rtol=0)


def test_the_end_is_worth_the_rewards_for_ever() -> None:
    """Expert: Q → 1/(1−γ); others, and the untaken tokens of the expert's last state: Q → 0."""
    made = builders.make_world(seed=5, lengths=(1, 1), finished=(True, True), expert=(True, False), off_support=0.0, p=1.0)
    made.logits.data.zero_()
    untaken = loss_of(made, gamma=0.9, other="untaken")
    assert untaken[:, 0].tolist() == pytest.approx([100.0, 0.0])
    made.logits.data.scatter_(-1, made.tokens.unsqueeze(-1), 10.0)
    assert loss_of(made, gamma=0.9, other="rollouts")[:, 0].tolist() == pytest.approx([0.0, 100.0])
    assert loss_of(made, gamma=0.9, other="rollouts", terminal="zero")[:, 0].tolist() == pytest.approx([81.0, 100.0])


def test_the_weights_of_untaken_tokens_carry_no_gradient() -> None:
    """At γ = 0 each untaken logit feels its own square alone: 2·π(b)·Q(b)."""
    made = builders.make_world(seed=6, lengths=(1,), finished=(True,), off_support=0.0, p=1.0)
    _, grad, _ = builders.loss_and_grads(made, bind("sqil", gamma=0.0))
    q, token = made.logits.detach()[0, 0], int(made.tokens[0, 0])
    want = 2.0 * q.softmax(-1) * q
    want[token] = 2.0 * (q[token] - 1.0)
    torch.testing.assert_close(grad[0, 0], want, atol=1e-12, rtol=0)


def test_only_the_steps_that_it_names_pay(world: builders.World) -> None:
    """The student's steps pay as ``rollouts`` and are silent under ``untaken``; a weight of 0 silences them in both."""
    assert loss_of(world, other="untaken")[2].eq(0).all()
    assert loss_of(world, other="rollouts")[2].gt(0).any()
    silent = [loss_of(world, other=other, other_weight=0.0) for other in ("untaken", "rollouts")]
    assert torch.equal(*silent)
    assert silent[0][2].eq(0).all()


@pytest.mark.parametrize("other", ["untaken", "rollouts"])
def test_off_support_steps_and_the_last_of_a_cut_off_pay_nothing(world: builders.World, other: str) -> None:
    loss_t, steps = loss_of(world, other=other), builders.steps_of(world)
    assert loss_t[steps.a_t < 0].eq(0).all()
    assert loss_t[0, 3] == 0
    whole = loss_of(replace(world, finished=(True, True, True)), other=other)
    assert (whole[0, 3] != 0) == bool(steps.a_t[0, 3] >= 0)


@pytest.mark.parametrize("stop_target", [False, True])
def test_stop_target_cuts_the_gradient_through_the_next_state(stop_target: bool) -> None:
    made = mixed(off_support=0.0)
    loss_t = bind("sqil", stop_target=stop_target)(builders.steps_of(made)).loss_t
    (grad,) = torch.autograd.grad(loss_t[1, 0], made.logits)
    assert grad[1, 0].ne(0).any()
    assert grad[1, 1].eq(0).all() == stop_target


def test_metrics_are_those_of_the_token_taken(world: builders.World) -> None:
    out = bind("sqil", gamma=0.9, other="rollouts", other_weight=0.5)(builders.steps_of(world))
    counts = ~out.metrics["td/q"].isnan() & world.mask
    assert not any(x.requires_grad for x in out.metrics.values())
    reward = torch.tensor([1.0, 1.0, 0.0]).unsqueeze(-1)
    error_t = out.metrics["td/reward"] - reward
    torch.testing.assert_close(out.metrics["td/bellman_error"][counts], error_t.square()[counts], atol=1e-9, rtol=0)
    weight = torch.tensor([1.0, 1.0, 0.5]).unsqueeze(-1)
    torch.testing.assert_close(out.loss_t.detach()[counts], (weight * error_t.square())[counts], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gauge": "max"}, "gauge='max'.*'none' or 'learned'"),
        ({"gamma": 1.0}, "gamma < 1"),
        ({"other": "student"}, "'untaken' or 'rollouts'"),
        ({"other_weight": -1.0}, "other_weight=-1.0"),
    ],
)
def test_refuses_what_it_cannot_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind("sqil", **arguments)
    assert bind("sqil", gamma=1.0, terminal="zero").needs == {"expert"}


def test_needs_to_know_who_took_a_step(world: builders.World) -> None:
    assert bind("sqil", gauge="learned", anchor="tail").needs == {"expert", "value", "log_z"}
    with pytest.raises(ConfigError, match="expert_t"):
        bind("sqil")(builders.steps_of(world, needs=frozenset()))
    bound = bind("sqil")
    lean, full = (bound(builders.steps_of(world, needs=needs)).loss_t for needs in (bound.needs, builders.EVERY_NEED))
    assert torch.equal(lean, full)


@pytest.mark.parametrize("gauge", ["none", "learned"])
def test_gradcheck(gauge: str) -> None:
    """Without untaken tokens, whose weights are held fixed."""
    made = mixed(lengths=(2, 1, 2), vocab=4)
    builders.assert_gradcheck(made, bind("sqil", gauge=gauge, gamma=0.9, other="rollouts"))
