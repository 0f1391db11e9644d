"""Total variation distance: symmetric, in [0, 1], the largest gap over sets of tokens."""

import itertools
from dataclasses import replace

import builders
import pytest
import torch
from hypothesis import given, settings

from tdistill.objectives import bind


@settings(max_examples=20, deadline=None)
@given(world=builders.worlds(vocab=5))
def test_is_the_largest_difference_over_sets_of_tokens(world: builders.World) -> None:
    gap = world.teacher_logp.exp() - world.logits.detach().softmax(-1)
    sets = [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=5)]
    largest = torch.stack([(gap * s).sum(-1) for s in sets]).amax(0)
    got = builders.loss_and_grads(world, bind("tvd", support="dense"))[0]
    torch.testing.assert_close(got[world.mask], largest[world.mask], atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(world=builders.worlds())
def test_stays_below_the_kl_divergences_as_pinsker_says(world: builders.World) -> None:
    """tvd² ≤ KL/2 both ways."""
    tvd, *kls = (builders.loss_and_grads(world, bind(n))[0] for n in ("tvd", "forward_kl", "reverse_kl"))
    assert all((tvd.square() <= kl / 2 + 1e-12).all() for kl in kls)


@pytest.mark.parametrize("support", ["tail", "dense"])
def test_a_uniform_teacher_and_a_certain_student(support: str) -> None:
    """1 − 1/V; and 1 where they share no token."""
    world = builders.make_world(vocab=4, lengths=(1,), finished=(True,), p=1.0)
    world.logits.data[0, 0] = torch.tensor([1e3, 0.0, 0.0, 0.0], dtype=torch.float64)
    uniform = replace(world, teacher_logp=torch.full((1, 1, 4), 0.25, dtype=torch.float64).log())
    apart = replace(world, teacher_logp=torch.tensor([[[-1e3, 0.0, -1e3, -1e3]]], dtype=torch.float64).log_softmax(-1))
    for case, want in ((uniform, 0.75), (apart, 1.0)):
        assert builders.loss_and_grads(case, bind("tvd", support=support))[0].item() == pytest.approx(want, abs=1e-12)


def test_its_gradient_forgets_how_far_off_the_student_is() -> None:
    """Only the sign of q − p counts, so a student next to the teacher feels as much as one further off."""
    world = builders.make_world(vocab=2, lengths=(1,), finished=(True,), p=1.0)
    world = replace(world, teacher_logp=torch.full((1, 1, 2), 0.5, dtype=torch.float64).log())
    for shift in (1e-6, 1.0):
        world.logits.data[0, 0] = torch.tensor([shift, 0.0], dtype=torch.float64)
        q = world.logits.detach()[0, 0].softmax(-1)
        grad = builders.loss_and_grads(world, bind("tvd"))[1][0, 0]
        torch.testing.assert_close(grad, q[0] * q[1] * torch.tensor([1.0, -1.0], dtype=torch.float64))
