"""α-β-divergence: its special points, its limits on the singular lines, its range."""

from dataclasses import replace

import builders
import oracles_divergences as divergences
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill.objectives import bind
from tdistill.objectives.alpha_beta import EXP_LIMIT, ab_divergence
from tdistill.runtime.errors import ConfigError

SUPPORTS = ["tail", "proj", "uniform", "dense"]
LINES = [(0.7, 0.0), (1.0, 0.0), (0.0, 0.7), (0.0, 1.0), (0.5, -0.5), (-0.5, 0.5), (1.0, -1.0), (0.0, 0.0)]


def rows(seed: int, scale: float = 1.5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of teacher and student over a few tokens, and that every slot counts."""
    g = torch.Generator().manual_seed(seed)
    p, q = ((scale * torch.randn(6, generator=g, dtype=torch.float64)).log_softmax(-1).to(dtype) for _ in range(2))
    return p, q.requires_grad_(), torch.ones(6, dtype=torch.bool)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(("alpha", "beta", "same_as"), [(1.0, 0.0, "forward_kl"), (0.0, 1.0, "reverse_kl")])
def test_two_corners_are_the_kl_divergences(alpha: float, beta: float, same_as: str, support: str) -> None:
    world = builders.make_world(seed=61)
    ours = builders.loss_and_grads(world, bind("alpha_beta", alpha=alpha, beta=beta, support=support))
    theirs = builders.loss_and_grads(world, bind(same_as, support=support))
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def test_other_known_points() -> None:
    """(1, 1) half the squared distance, (½, ½) four times one minus the Bhattacharyya coefficient, (2, −1) half of Pearson's χ²."""
    p, q, legal = rows(62)
    known = {
        (1.0, 1.0): (p.exp() - q.exp()).square().sum() / 2,
        (0.5, 0.5): 4 * (1 - ((p + q) / 2).exp().sum()),
        (2.0, -1.0): ((p.exp() - q.exp()).square() / q.exp()).sum() / 2,
        (0.0, 0.0): (p - q).square().sum() / 2,
    }
    for (alpha, beta), want in known.items():
        torch.testing.assert_close(ab_divergence(p, q, legal, alpha, beta), want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1.0, 1.0), (2.0, -1.0), (0.7, 0.0), (0.5, -0.5), (0.0, 0.0)])
def test_its_gradient_is_the_students_weight_times_a_difference_of_powers(alpha: float, beta: float) -> None:
    """∂/∂log q = q^β·(q^α − p^α)/α, and q^β·log(q/p) at α = 0: β weighs tokens by the student, α sets how errors count."""
    p, q, legal = rows(64)
    (grad,) = torch.autograd.grad(ab_divergence(p, q, legal, alpha, beta), q)
    error = q - p if alpha == 0 else ((alpha * q).exp() - (alpha * p).exp()) / alpha
    torch.testing.assert_close(grad, ((beta * q).exp() * error).detach(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), LINES)
def test_the_singular_lines_are_limits_of_the_equation(alpha: float, beta: float) -> None:
    """The mean of the equation at ±h off the line, with 80 digits, is the value on it but for O(h²)."""
    p, q, legal = rows(65)
    on_line, h = ab_divergence(p, q, legal, alpha, beta).item(), 1e-7
    for direction in ((h, h / 3), (h / 3, h), (h, -2 * h)):
        sides = [divergences.alpha_beta_by_decimals(p.tolist(), q.tolist(), alpha + s * direction[0], beta + s * direction[1]) for s in (-1, 1)]
        assert sum(sides) / 2 == pytest.approx(on_line, rel=1e-10)
        assert sides[0] != pytest.approx(sides[1], rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.5, 4.0])
@pytest.mark.parametrize("h", [1e-12, 1e-8, 1e-5, 1e-3])
def test_is_exact_beside_the_singular_lines(h: float, scale: float) -> None:
    """Where the equation divides rounding errors by α·β: value and gradient keep their digits in both precisions."""
    for alpha, beta in [(0.7, h), (h, 0.7), (1.0, h), (h, 1.0), (0.5, -0.5 + h), (h, h), (h, 3 * h), (0.7, -h)]:
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            p, q, legal = rows(66, scale, dtype)
            got = ab_divergence(p, q, legal, alpha, beta)
            want = divergences.alpha_beta_by_decimals(p.tolist(), q.tolist(), alpha, beta)
            assert got.item() == pytest.approx(want, rel=tolerance, abs=tolerance * 1e-6), (alpha, beta, dtype)
            (grad,) = torch.autograd.grad(got, q)
            p64, q64 = p.double(), q.detach().double()
            exact = (beta * q64 + alpha * p64).exp() * torch.expm1(alpha * (q64 - p64)) / alpha
            torch.testing.assert_close(grad.double(), exact, rtol=tolerance, atol=tolerance * scale, msg=str((alpha, beta, dtype)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), alpha=st.floats(-2, 2), beta=st.floats(-2, 2), scale=st.sampled_from([0.01, 1.0, 20.0]))
def test_is_never_negative(seed: int, alpha: float, beta: float, scale: float) -> None:
    """In its whole range, also where exp is continued as its tangent: it is convex still."""
    if alpha + beta < 0:
        alpha, beta = -alpha, -beta
    p, q, legal = rows(seed, scale)
    assert ab_divergence(p, q, legal, alpha, beta).item() >= -1e-12


def test_goes_on_with_the_same_slope_where_exp_would_overflow() -> None:
    p = torch.tensor([-1.0], dtype=torch.float64)
    far = -EXP_LIMIT - 2.0 + torch.tensor([1e-6, -1e-6, -1e3], dtype=torch.float64)  # 2·log p − log q around EXP_LIMIT, and beyond
    grads = []
    for x in far:
        q = x.view(1).requires_grad_()
        grads += torch.autograd.grad(ab_divergence(p, q, torch.tensor([True]), 2.0, -1.0), q)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(grads[1], grads[2], rtol=1e-5, atol=0)


def test_a_token_that_one_of_them_rules_out() -> None:
    """p = 0: q^(α+β)/(α(α+β)) while α and α + β are positive, else infinite; the same with the roles exchanged; 0 if both do."""
    gone, half, legal = torch.tensor([-torch.inf]), torch.tensor([0.5]).log(), torch.tensor([True])
    for alpha, beta in [(0.2, 0.7), (0.7, 0.0), (2.0, -1.0)]:
        q = half.clone().requires_grad_()
        got = ab_divergence(gone, q, legal, alpha, beta)
        assert got.item() == pytest.approx(0.5 ** (alpha + beta) / (alpha * (alpha + beta)))
        assert torch.autograd.grad(got, q)[0].item() == pytest.approx(0.5 ** (alpha + beta) / alpha)
        assert ab_divergence(half, gone, legal, beta, alpha).item() == pytest.approx(got.item())
        assert ab_divergence(gone, gone, legal, alpha, beta).item() == 0.0
    for alpha, beta in [(0.0, 1.0), (-1.0, 2.0), (0.5, -0.5), (0.0, 0.0)]:
        assert ab_divergence(gone, half, legal, alpha, beta).isposinf()
        assert ab_divergence(half, gone, legal, beta, alpha).isposinf()


def test_a_tail_bucket_may_lie_above_the_dense_loss() -> None:
    """Unless α + β = 1: squared distance of two sums against the sum of squared distances."""
    world = builders.make_world(vocab=4, lengths=(1,), finished=(True,), p=0.5)
    world = replace(world, teacher_logp=torch.tensor([[[0.58, 0.14, 0.14, 0.14]]], dtype=torch.float64).log())
    world.logits.data[0, 0] = torch.tensor([0.97, 0.01, 0.01, 0.01], dtype=torch.float64).log()
    tail, dense = (builders.loss_and_grads(world, bind("alpha_beta", alpha=1.0, beta=1.0, support=s))[0].item() for s in ("tail", "dense"))
    assert tail == pytest.approx(0.39**2)
    assert dense == pytest.approx((0.39**2 + 3 * 0.13**2) / 2)
    assert tail > dense


@pytest.mark.parametrize(("alpha", "beta"), [(-0.5, 0.0), (0.0, -0.1), (-1.0, -1.0), (1.0, -1.5)])
def test_a_negative_sum_of_exponents_is_refused(alpha: float, beta: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha_beta needs alpha \+ beta ≥ 0, got alpha="):
        bind("alpha_beta", alpha=alpha, beta=beta)
