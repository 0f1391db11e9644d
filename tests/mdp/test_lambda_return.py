"""The λ-return: by hand, and its ends at c = 0 and c = 1."""

import pytest
import torch
from torch import Tensor

from tdistill.mdp.bellman import lambda_return


def rows(seed: int, n: int = 4) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, generator=g, dtype=torch.float64) for _ in range(n)]


def test_by_hand() -> None:
    """Two steps, γ = .5:  G_1 = 2 + .5(1 + .25(0 − 3)) = 2.125;  G_0 = −1 + .5(4 + .75(2.125 − 2)) = 1.046875."""
    reward, value, baseline, trace = (torch.tensor([x]) for x in ([-1.0, 2.0], [4.0, 1.0], [2.0, 3.0], [0.75, 0.25]))
    discount = torch.full_like(reward, 0.5)
    assert lambda_return(reward, discount, value, baseline, trace).tolist() == [[1.046875, 2.125]]


def test_nothing_is_added_where_the_discount_is_0() -> None:
    """Two responses in a row, each of two steps:  G = [1 + .5·2, 2, 3 + .5·4, 4]."""
    reward, discount, zero = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.5, 0.0, 0.5, 0.0]]), torch.zeros(1, 4)
    assert lambda_return(reward, discount, zero + 9.0, zero + 9.0, zero + 1.0).tolist() == [[2.0, 2.0, 5.0, 4.0]]


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_without_trace_it_bootstraps_at_once_and_with_all_of_it_sums_rewards(gamma: float) -> None:
    reward, value, baseline, _ = rows(1)
    discount = torch.full_like(reward, gamma)
    one_step = lambda_return(reward, discount, value, baseline, torch.zeros_like(reward))
    assert torch.equal(one_step, reward + gamma * value)
    all_rewards = lambda_return(reward, discount, value, value, torch.ones_like(reward))
    for t in range(5):
        want = sum(gamma**k * reward[:, t + k] for k in range(5 - t))
        torch.testing.assert_close(all_rewards[:, t], want, atol=1e-12, rtol=0)


def test_it_is_the_geometric_mean_of_the_n_step_returns() -> None:
    """(1−λ)Σ_{n<N} λ^{n−1} G^{(n)} + λ^{N−1} G^{(N)}, G^{(n)} = Σ_{k<n} γ^k r_{t+k} + γ^n v; the last bootstraps where its trace is 0."""
    reward, value, _, _ = rows(2)
    gamma, lambda_, steps = 0.8, 0.6, 5
    trace = torch.full_like(reward, lambda_)
    trace[:, -1] = 0.0
    ours = lambda_return(reward, torch.full_like(reward, gamma), value, value, trace)
    for t in range(steps):
        longest = steps - t
        want = torch.zeros_like(reward[:, 0])
        for n in range(1, longest + 1):
            n_step = sum(gamma**k * reward[:, t + k] for k in range(n)) + gamma**n * value[:, t + n - 1]
            want = want + lambda_ ** (n - 1) * (1.0 if n == longest else 1.0 - lambda_) * n_step
        torch.testing.assert_close(ours[:, t], want, atol=1e-12, rtol=0)


def test_its_gradient_is_exact() -> None:
    arguments = tuple(x.requires_grad_() for x in rows(3, n=5))
    assert torch.autograd.gradcheck(lambda_return, arguments)
