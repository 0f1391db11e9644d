"""Negative log-likelihood over the whole vocabulary: SFT and sequence-level distillation."""

import math

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.objectives import bind

NLL = bind("nll")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("p", [0.05, 0.8, 1.0])
def test_equals_the_oracle(p: float, dtype: torch.dtype) -> None:
    """Tokens outside A_p count as any other."""
    world = builders.make_world(seed=1, lengths=(4, 2, 3), finished=(True, False, True), p=p)
    assert (builders.steps_of(world).a_t[world.mask] < 0).any() == (p < 1.0)
    builders.assert_equals_oracle(world, NLL, oracles.nll, dtype)


def test_is_the_cross_entropy_of_the_tokens_taken() -> None:
    world = builders.make_world(seed=2, lengths=(5,), finished=(False,))
    loss_t, grad, _ = builders.loss_and_grads(world, NLL)
    reference = torch.nn.functional.cross_entropy(world.logits[0], world.tokens[0], reduction="none")
    torch.testing.assert_close(loss_t[0], reference.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(reference.sum(), world.logits)[0])


def test_needs_the_partition_and_the_token_and_no_more() -> None:
    assert NLL.needs == {"log_z", "taken", "expert"}
    assert NLL(builders.steps_of(builders.make_world(), needs=NLL.needs)).loss_t.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(world=builders.worlds(), pad_t=st.integers(0, 3), pad_k=st.integers(0, 3), junk=st.sampled_from([0.0, -90.0, 1e4]))
def test_padding_changes_nothing(world: builders.World, pad_t: int, pad_k: int, junk: float) -> None:
    builders.assert_padding_invariant(world, NLL, pad_t, pad_k, junk)


def test_masked_slots_get_no_gradient() -> None:
    builders.assert_masked_gradient_is_zero(builders.make_world(), NLL)


def test_extreme_logits_stay_finite_and_exact() -> None:
    builders.assert_finite_at_extremes(NLL)
    builders.assert_equals_oracle(builders.extreme_world(seed=3), NLL, oracles.nll)


def test_what_the_student_wrote_is_not_cloned() -> None:
    world = builders.make_world(seed=2, lengths=(3, 2), finished=(True, True), expert=(True, False))
    loss_t, grad, _ = builders.loss_and_grads(world, NLL)
    assert (loss_t[0] > 0).all()
    assert loss_t[1].eq(0).all()
    assert grad[1].eq(0).all()


def test_a_uniform_student_pays_log_v() -> None:
    world = builders.make_world(vocab=6)
    world.logits.data.fill_(-3.0)
    assert builders.loss_and_grads(world, NLL)[0][world.mask].tolist() == pytest.approx([math.log(6)] * 5)


def test_gradcheck() -> None:
    builders.assert_gradcheck(builders.make_world(), NLL)
