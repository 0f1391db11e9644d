"""Skew KL and skew reverse KL: the KL divergences at skew 0, bounded by −log skew above it."""

import math
from dataclasses import replace

import builders
import pytest
import torch

from tdistill.objectives import bind
from tdistill.objectives.parts.divergence import kl
from tdistill.runtime.errors import ConfigError

SUPPORTS = ["tail", "proj", "uniform", "dense"]
PLAIN = {"skew_kl": "forward_kl", "skew_rkl": "reverse_kl"}
both = pytest.mark.parametrize("name", sorted(PLAIN))


@both
@pytest.mark.parametrize("support", SUPPORTS)
def test_without_skew_it_is_the_plain_divergence(name: str, support: str) -> None:
    world = builders.make_world(seed=41)
    ours, theirs = (builders.loss_and_grads(world, bind(n, support=support, **a)) for n, a in ((name, {"skew": 0.0}), (PLAIN[name], {})))
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got, want)


@both
def test_little_skew_is_nearly_the_plain_divergence(name: str) -> None:
    world = builders.make_world(seed=42)
    for got, want in zip(*(builders.loss_and_grads(world, bind(n, **a)) for n, a in ((name, {"skew": 1e-8}), (PLAIN[name], {}))), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("skew", [0.1, 0.5])
@pytest.mark.parametrize("support", SUPPORTS)
def test_never_more_than_minus_log_skew(name: str, skew: float, support: str) -> None:
    """Where the plain divergence is thousands of nats."""
    world = builders.extreme_world(1)
    assert builders.loss_and_grads(world, bind(name, skew=skew, support=support))[0].max() <= -math.log(skew) + 1e-9
    assert builders.loss_and_grads(world, bind(PLAIN[name], support="dense"))[0].max() > 1e3


def test_a_uniform_teacher_and_a_certain_student() -> None:
    """The student has the one token of V: the mixture of each is known at it and beside it."""
    vocab, skew = 4, 0.1
    world = builders.make_world(vocab=vocab, lengths=(1,), finished=(True,), p=1.0)
    world = replace(world, teacher_logp=torch.full((1, 1, vocab), 1 / vocab, dtype=torch.float64).log())
    world.logits.data[0, 0] = torch.tensor([1e3, 0.0, 0.0, 0.0], dtype=torch.float64)
    forward = -math.log(skew * 1 + (1 - skew) * vocab) / vocab - (vocab - 1) / vocab * math.log(skew)
    reverse = -math.log((1 - skew) / vocab + skew)
    got = [builders.loss_and_grads(world, bind(name, skew=skew))[0].item() for name in ("skew_kl", "skew_rkl")]
    assert got == [pytest.approx(forward, abs=1e-12), pytest.approx(reverse, abs=1e-12)]


def test_a_token_that_the_teacher_rules_out_costs_the_reverse_form_a_finite_amount() -> None:
    """p = 0 where the student has mass: q·(−log λ) and its gradient, where the plain reverse KL is infinite."""
    world = builders.make_world(vocab=2, lengths=(1,), finished=(True,), p=1.0)
    world = replace(world, teacher_logp=torch.tensor([[[0.0, -torch.inf]]], dtype=torch.float64))
    q, skew = world.logits.detach()[0, 0].softmax(-1), 0.2
    loss_t, grad, _ = builders.loss_and_grads(world, bind("skew_rkl", skew=skew, support="dense"))
    at_first = math.log(q[0]) - math.log(1 - skew + skew * q[0])
    assert loss_t.item() == pytest.approx(q[0] * at_first - q[1] * math.log(skew))
    slope = at_first + 1 - skew * q[0] / (1 - skew + skew * q[0]) + math.log(skew)  # ∂/∂q₀ with q₁ = 1 − q₀
    torch.testing.assert_close(grad[0, 0], slope * q[0] * q[1] * torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert builders.loss_and_grads(world, bind("reverse_kl", support="dense"))[0].isinf()


@both
@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5])
def test_a_skew_out_of_range_is_refused(name: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=r"skew must lie in \[0, 1\), got"):
        bind(name, skew=bad)


@pytest.mark.parametrize("skew", [0.0, 0.3])
def test_the_derivatives_by_both_sides(skew: float) -> None:
    generator = torch.Generator().manual_seed(3)
    p, q = (torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    legal = torch.tensor([[True] * 5, [True, False, True, True, False]])
    assert torch.autograd.gradcheck(lambda p, q: kl(p, q, legal, skew), (p, q))


def test_slots_that_one_or_both_sides_rule_out() -> None:
    p = torch.tensor([-torch.inf, -torch.inf, 0.0], requires_grad=True)
    q = torch.tensor([-torch.inf, -1.0, -torch.inf], requires_grad=True)
    loss = kl(p, q, torch.ones(3, dtype=torch.bool), 0.25)
    assert loss.item() == pytest.approx(-math.log(0.25))
    assert [g.tolist() for g in torch.autograd.grad(loss, (p, q))] == [[0.0, 0.0, pytest.approx(-math.log(0.25))], [0.0, 0.0, 0.0]]


def test_a_mixture_that_underflows_costs_no_more_than_the_bound() -> None:
    """exp(−103) is the least float32 above 0, a tenth of it is 0."""
    p = torch.tensor([-103.0, 0.0], requires_grad=True)
    loss = kl(p, torch.tensor([-torch.inf, 0.0]), torch.ones(2, dtype=torch.bool), 0.1)
    (grad,) = torch.autograd.grad(loss, p)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert grad.tolist() == [pytest.approx(0.0, abs=1e-6), pytest.approx(0.9, abs=1e-6)]
