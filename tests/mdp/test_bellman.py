"""Projection, soft value, discounted values and κ(p), against loops and identities."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill.mdp.bellman import expectation, kappa, masked, project, soft_value, take
from tdistill.mdp.steps import Steps
from tdistill.runtime.errors import ConfigError

T, F = True, False


def random_rows(seed: int, n: int = 4, width: int = 6, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and a legality mask with one full row, one single token, and one state without candidates."""
    g = torch.Generator().manual_seed(seed)
    q = (scale * torch.randn(n, width, generator=g, dtype=torch.float64)).requires_grad_()
    legal = torch.rand(n, width, generator=g) < 0.6
    legal[0], legal[1], legal[2] = True, torch.arange(width) == 3, False
    legal[3, 0] = True
    return q, legal


@pytest.mark.parametrize("seed", range(3))
def test_soft_value_and_projection_equal_loops(seed: int) -> None:
    q, legal = random_rows(seed)
    v, logp = soft_value(q, legal), project(q, legal)
    for i in range(len(q)):
        inside = legal[i].nonzero().squeeze(-1).tolist()
        if not inside:
            assert v[i] == 0.0
            assert logp[i].eq(-torch.inf).all()
            continue
        row = [q[i, a] for a in inside]
        assert v[i].item() == pytest.approx(oracles.log_sum_exp(row).item(), abs=1e-12)
        want = [x.item() for x in oracles.log_softmax(row)]
        assert logp[i, inside].tolist() == pytest.approx(want, abs=1e-12)
        assert logp[i][~legal[i]].eq(-torch.inf).all()


def test_soft_value_is_the_expected_q_plus_the_entropy() -> None:
    q, legal = random_rows(7)
    logp = project(q, legal)
    inner = torch.where(legal, q - torch.where(legal, logp, 0.0), 123.0)
    torch.testing.assert_close(expectation(logp, inner, legal), soft_value(q, legal), atol=1e-12, rtol=0)


def test_the_gradient_of_the_soft_value_is_the_projected_policy() -> None:
    q, legal = random_rows(8)
    (grad,) = torch.autograd.grad(soft_value(q, legal).sum(), q)
    torch.testing.assert_close(grad, project(q, legal).exp(), atol=1e-12, rtol=0)
    assert grad[~legal].eq(0).all()


def test_projection_forgets_a_constant_and_its_gradient_is_finite() -> None:
    q, legal = random_rows(9)
    torch.testing.assert_close(project(q + 3.7, legal), project(q, legal), atol=1e-12, rtol=0)
    torch.testing.assert_close(project(q.log_softmax(-1), legal), project(q, legal), atol=1e-12, rtol=0)
    (grad,) = torch.autograd.grad(project(q, legal)[legal].square().sum(), q)
    assert grad.isfinite().all()
    assert grad[~legal].eq(0).all()
    assert grad[legal].ne(0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    q = torch.tensor([[1e4, -1e4, 1e4], [-1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    legal = torch.tensor([[T, T, F], [T, T, F]])
    v = soft_value(q, legal)
    torch.testing.assert_close(v, torch.tensor([1e4, -1e4 + math.log(2)], dtype=dtype))
    (grad,) = torch.autograd.grad(v.sum(), q)
    # A float32 of 1e4 is good to 5e-4, and so is a difference of two.
    torch.testing.assert_close(grad, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=dtype), atol=5e-4, rtol=0)


def test_masked_and_expectation_ignore_what_padding_holds() -> None:
    legal = torch.tensor([[T, F, T]])
    logp = torch.tensor([[math.log(0.25), math.nan, math.log(0.75)]])
    x = torch.tensor([[4.0, torch.inf, 8.0]])
    assert expectation(logp, x, legal).item() == pytest.approx(7.0)
    assert masked(x, legal).tolist() == [[4.0, -math.inf, 8.0]]


def test_take_reads_the_token_taken_and_gives_0_off_support() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]], requires_grad=True)
    a = torch.tensor([[1, -1, 0]])
    taken = take(x, a)
    assert taken.tolist() == [[2.0, 0.0, 5.0]]
    (grad,) = torch.autograd.grad(taken.sum(), x)
    assert grad.tolist() == [[[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]]


def steps_of(q: Tensor, terminal: Tensor) -> Steps:
    """Every action legal, the first one taken, every state real."""
    return Steps(q, q, torch.ones_like(q, dtype=torch.bool), torch.zeros_like(terminal, dtype=torch.long), torch.ones_like(terminal), terminal)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 9), gamma=st.floats(0.0, 1.0), end=st.floats(-5.0, 50.0), seed=st.integers(0, 999))
def test_discounted_value_differences_telescope(length: int, gamma: float, end: float, seed: int) -> None:
    """Σ_t γ^t (V_t − γV_{t+1}) = V_0 − γ^T V_T."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(1, length, 4, generator=g, dtype=torch.float64)
    v = soft_value(q, torch.ones(1, length, 4, dtype=torch.bool))
    terminal = torch.arange(length).unsqueeze(0) == length - 1
    discount = torch.tensor([gamma**t for t in range(length)], dtype=torch.float64)
    total = (discount * (v - steps_of(q, terminal).discounted_value(v, gamma, end))).sum()
    assert total.item() == pytest.approx(v[0, 0].item() - gamma**length * end, abs=1e-9)


def test_a_gauge_change_is_potential_shaping() -> None:
    """ℓ − c moves r_t by γc(s_{t+1}) − c(s_t), with c(terminal) = 0, and leaves the policy."""
    g = torch.Generator().manual_seed(4)
    q, c = (torch.randn(2, 5, n, generator=g, dtype=torch.float64) for n in (3, 1))
    legal, a = torch.ones_like(q, dtype=torch.bool), torch.randint(3, (2, 5), generator=g)
    terminal = torch.zeros(2, 5, dtype=torch.bool)
    terminal[:, -1] = True

    def reward(x: Tensor) -> Tensor:
        return take(x, a) - steps_of(x, terminal).discounted_value(soft_value(x, legal), 0.9)

    c_t = c.squeeze(-1)
    c_tp1 = torch.cat([c_t[:, 1:], torch.zeros(2, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(reward(q - c) - reward(q), 0.9 * c_tp1 - c_t, atol=1e-12, rtol=0)
    torch.testing.assert_close(project(q - c, legal), project(q, legal), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("p", "gamma", "nats"),
    [(0.8, 0.99, 22.091), (0.5, 0.99, 68.622), (0.95, 0.99, 5.078), (0.8, 0.5, 0.22314), (0.8, 0.0, 0.0), (1.0, 0.99, 0.0)],
)
def test_kappa(p: float, gamma: float, nats: float) -> None:
    assert kappa(p, gamma) == pytest.approx(nats, abs=5e-4)
    assert math.copysign(1.0, kappa(p, gamma)) == 1.0, "a bound of −0 would be printed with a sign"


@pytest.mark.parametrize("p", [0.0, -0.5, 1.5, math.nan])
def test_kappa_refuses_p_outside_its_range(p: float) -> None:
    with pytest.raises(ConfigError, match=r"p in \(0, 1\]"):
        kappa(p, 0.9)


@pytest.mark.parametrize("gamma", [1.0, 1.5, -0.1, math.nan])
def test_kappa_refuses_gamma_outside_its_range(gamma: float) -> None:
    with pytest.raises(ConfigError, match=r"gamma in \[0, 1\)"):
        kappa(0.8, gamma)
