"""The loss of the released code, against a loop over whole vocabulary rows."""

from dataclasses import replace
from typing import Any

import builders
import oracles_inverse
import pytest
import torch

from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError

DEFAULTS: dict[str, float] = {"gamma": 0.99, "alpha": 0.1, "q_min": -10.0}


def oracle(**knobs: float) -> Any:
    return lambda response: oracles_inverse.bd_released(response, **{**DEFAULTS, **knobs})


@pytest.fixture
def world() -> builders.World:
    return builders.make_world(seed=61, lengths=(4, 1, 3), finished=(True, True, False), vocab=6)


@pytest.mark.parametrize("p", [0.05, 0.8, 1.0])
@pytest.mark.parametrize("knobs", [{}, {"gamma": 0.0}, {"gamma": 1.0, "alpha": 3.0}, {"q_min": -1.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_oracle(p: float, knobs: dict[str, float], dtype: torch.dtype) -> None:
    made = builders.make_world(seed=62, lengths=(4, 1, 3), finished=(True, True, False), vocab=6, p=p)
    builders.assert_equals_oracle(made, bind("bd_released", **knobs), oracle(**knobs), dtype)


@pytest.mark.parametrize("finished", [True, False])
def test_the_last_position_is_dropped(world: builders.World, finished: bool) -> None:
    loss_t = builders.loss_and_grads(replace(world, finished=(finished,) * 3), bind("bd_released"))[0]
    last = torch.arange(4) == torch.tensor(world.lengths).unsqueeze(-1) - 1
    assert loss_t[last].eq(0).all()
    assert loss_t[world.mask & ~last].ne(0).all()


def test_the_token_taken_never_enters(world: builders.World) -> None:
    other = replace(world, tokens=(world.tokens + 1) % 6)
    for got, want in zip(*(builders.loss_and_grads(w, bind("bd_released")) for w in (other, world)), strict=True):
        assert torch.equal(got, want)


def test_the_clip_is_hard() -> None:
    """No gradient reaches a clipped logit but through the maximum, not even one that would raise it."""
    made = builders.make_world(lengths=(2,), finished=(True,), vocab=3, p=1.0)
    made.logits.data[0, 0] = torch.tensor([0.0, -20.0, -30.0])
    loss_t, grad, _ = builders.loss_and_grads(made, bind("bd_released"))
    assert grad[0, 0].eq(0).all()  # of the unclipped logit too: under the gauge max, Q of the maximum is 0
    made.logits.data[0, 0] = torch.tensor([0.0, -10.0, -10.0])
    assert builders.loss_and_grads(made, bind("bd_released"))[0][0, 0] == loss_t[0, 0]


def test_the_vocabulary_counts(world: builders.World) -> None:
    """|V| weighs Q against V: with twice as many rows the same candidates weigh half."""
    steps = builders.steps_of(world)
    for size in (6, 12):
        loss_t = bind("bd_released", alpha=float("inf"))(replace(steps, vocab_size=size)).loss_t
        q_t = torch.where(steps.legal_t, steps.q_t - steps.max_t.unsqueeze(-1), 0.0).sum(-1)  # type: ignore[union-attr]
        v_t = bind("bd_released")(steps).metrics["td/v"]
        torch.testing.assert_close(loss_t[0, :3], (v_t - q_t / size)[0, :3], atol=1e-12, rtol=0)


@pytest.mark.parametrize("arguments", [{"q_min": None}, {"alpha": 0.0}, {"gamma": 1.5}, {"gauge": "max"}], ids=str)
def test_refuses_what_the_released_code_has_not(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        bind("bd_released", **arguments)


def test_needs_no_more_than_it_reads(world: builders.World) -> None:
    bound = bind("bd_released")
    assert bound.needs == {"max"}
    lean, full = (bound(builders.steps_of(world, needs=needs)).loss_t for needs in (bound.needs, builders.EVERY_NEED))
    assert torch.equal(lean, full)


def test_gradcheck(world: builders.World) -> None:
    builders.assert_gradcheck(world, bind("bd_released"))
