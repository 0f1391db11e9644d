"""The mass on A_p, student against teacher: the anchor of losses that see the candidates only."""

import math

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill.mdp.steps import Steps
from tdistill.objectives import bind

TAIL = bind("tail")


def oracle(response: oracles.Response) -> list[Tensor]:
    return [oracles.anchor_term(response, t, "tail") for t in range(len(response))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.8])
def test_equals_the_oracle(p: float, dtype: torch.dtype) -> None:
    world = builders.make_world(seed=1, lengths=(4, 2, 3), finished=(True, False, True), p=p, expert=(True, False, True))
    builders.assert_equals_oracle(world, TAIL, oracle, dtype)


def test_by_hand() -> None:
    """m* = .75, m = .5:  .75·log(.75/.5) + .25·log(.25/.5) = .1308 nats."""
    steps = Steps(
        q_t=torch.tensor([[[0.0, 0.0]]]),
        teacher_logp_t=torch.tensor([[[0.5, 0.25]]]).log(),
        legal_t=torch.ones(1, 1, 2, dtype=torch.bool),
        a_t=torch.tensor([[-1]]),
        mask_t=torch.ones(1, 1, dtype=torch.bool),
        terminal_t=torch.zeros(1, 1, dtype=torch.bool),
        log_z_t=torch.tensor([[math.log(4.0)]]),
    )
    assert TAIL(steps).loss_t.item() == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2.0), abs=1e-6)


def test_forward_kl_is_the_tail_and_what_is_on_the_projection() -> None:
    """Chain rule: KL with a tail bucket = ``tail`` + m*·KL of the projections."""
    world = builders.make_world(seed=4, p=0.8)
    steps = builders.steps_of(world)
    whole, on_support = (bind("forward_kl", support=s)(steps).loss_t for s in ("tail", "proj"))
    mass_t = steps.teacher_logp_t.exp().sum(-1)
    torch.testing.assert_close(whole[world.mask], (TAIL(steps).loss_t + mass_t * on_support)[world.mask], atol=1e-9, rtol=0)


def test_the_teacher_as_student_pays_nothing() -> None:
    world = builders.make_world(seed=2)
    world.logits.data.copy_(world.teacher_logp - 3.0)
    loss_t, grad, _ = builders.loss_and_grads(world, TAIL)
    assert loss_t.abs().max() < 1e-12
    assert grad.abs().max() < 1e-9


def test_it_needs_the_partition_alone() -> None:
    assert TAIL.needs == {"log_z"}
    assert TAIL(builders.steps_of(builders.make_world(), needs=TAIL.needs)).loss_t.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(world=builders.worlds(), pad_t=st.integers(0, 3), pad_k=st.integers(0, 3), junk=st.sampled_from([0.0, -90.0, 1e4]))
def test_padding_changes_nothing(world: builders.World, pad_t: int, pad_k: int, junk: float) -> None:
    builders.assert_padding_invariant(world, TAIL, pad_t, pad_k, junk)


def test_masked_slots_get_no_gradient() -> None:
    builders.assert_masked_gradient_is_zero(builders.make_world(), TAIL)


def test_extreme_logits_stay_finite() -> None:
    builders.assert_finite_at_extremes(TAIL)


def test_gradcheck() -> None:
    builders.assert_gradcheck(builders.make_world(), TAIL)
