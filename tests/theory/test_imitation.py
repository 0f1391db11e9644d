"""Top-p IQ-Learn with exact expectations: it finds the expert as α → ∞, and is biased at a finite α."""

import math

import oracles_tabular as oracles
import pytest
import torch
from torch.testing import assert_close

from tdistill.mdp.bellman import project
from tdistill.mdp.steps import Steps
from tdistill.mdp.tabular import TabularMDP, inverse_bellman, soft_optimal_q, top_p_set
from tdistill.objectives import bind
from tdistill.theory.imitation import Imitation, bandit, imitation, iq_loss, shaping_residual, solve, total_variation
from tdistill.theory.instances import Family, random_mdps, token_tree

EXPERT = [0.7, 0.2, 0.07, 0.03]


@pytest.mark.parametrize(
    ("alpha", "policy"),
    [(0.1, [0.35, 0.29, 0.21, 0.15]), (1.0, [0.58, 0.25, 0.11, 0.06]), (10.0, [0.68, 0.21, 0.08, 0.03]), (100.0, EXPERT)],
)
def test_the_bandit_ends_where_bisection_says(alpha, policy):
    problem, _ = bandit(EXPERT)
    found = solve(problem, alpha)[0, 0].softmax(-1).tolist()
    assert found == pytest.approx(oracles.bandit_minimiser(EXPERT, alpha), abs=1e-9)
    assert found == pytest.approx(policy, abs=0.005)


def random_problem(gamma: float, p: float, n: int = 4) -> tuple[Imitation, torch.Tensor, torch.Tensor]:
    """Random MDPs with the soft-optimal policy as expert: the problem, Q*, and the reward that makes the expert optimal on A_p."""
    mdp = random_mdps(torch.Generator().manual_seed(3), torch.full((n,), gamma, dtype=torch.float64), Family(4, 4, scale=1.0))
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    legal = top_p_set(q_star.softmax(-1), torch.full((n, 4), p, dtype=torch.float64))
    start = torch.full((n, 4), 0.25, dtype=torch.float64)
    return imitation(mdp, legal, q_star.log_softmax(-1), start), q_star, inverse_bellman(mdp, q_star, legal)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("p", [1.0, 0.8])
def test_expert_and_reward_up_to_shaping_are_recovered_as_alpha_grows(gamma, p):
    problem, q_star, reward = random_problem(gamma, p)
    distances, residuals, q = [], [], None
    for alpha in (1e6, 1e4, 1e2, 1.0):
        q = solve(problem, alpha, q)
        distances.append(total_variation(problem, q, q_star).max().item())
        residuals.append(shaping_residual(problem, inverse_bellman(problem.mdp, q, problem.legal), reward).max().item())
    assert distances == sorted(distances)
    assert distances[0] < 1e-5
    assert residuals[0] < 1e-4
    assert distances[-1] > 0.01
    assert distances[1] / distances[0] == pytest.approx(100.0, rel=0.05)  # the bias falls as 1/α


def test_with_every_action_kept_the_reward_is_the_mdps_own():
    problem, _, reward = random_problem(0.9, 1.0)
    assert_close(reward, problem.mdp.reward, rtol=0, atol=1e-9)


def test_shaping_changes_nothing_that_the_residual_sees_and_anything_else_does():
    problem, _, reward = random_problem(0.9, 0.8)
    mdp = problem.mdp
    c = torch.arange(16, dtype=torch.float64).view(4, 4)
    shaped = reward + c.unsqueeze(-1) - 0.9 * (mdp.transition @ c[:, None, :, None]).squeeze(-1)
    assert shaping_residual(problem, shaped, reward).max() < 1e-10
    other = torch.where(torch.arange(4) == problem.legal.int().argmax(-1, keepdim=True), reward + 1.0, reward)
    assert shaping_residual(problem, other, reward).min() < 1.0
    assert shaping_residual(problem, other, reward).max() > 0.1


def test_linear_phi_is_the_cross_entropy_to_the_expert():
    problem, _, _ = random_problem(0.99, 0.8)
    q = torch.randn(problem.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logp = torch.where(problem.legal, project(q, problem.legal), 0.0)
    assert_close(iq_loss(problem, q, math.inf), -(problem.weight * logp).sum((-2, -1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 50.0])
def test_the_tabular_loss_is_the_mean_of_the_objective_over_all_texts(alpha):
    """At γ = 1 the occupancy counts visits, as a mean over steps does: enumerating the texts of a tree gives the same number."""
    mdp = token_tree(torch.Generator().manual_seed(1), vocab=3, depth=3, gamma=1.0)
    logp = mdp.reward.log_softmax(-1)
    legal = top_p_set(logp.exp(), torch.full((len(logp),), 0.9, dtype=torch.float64))
    batch = TabularMDP(mdp.reward[None], mdp.transition[None], mdp.gamma[None])
    start = torch.zeros(1, len(logp), dtype=torch.float64)
    start[0, 0] = 1.0
    problem = imitation(batch, legal[None], logp[None], start)
    q = torch.randn(logp.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    successor = torch.where(mdp.transition.sum(-1) > 0, mdp.transition.argmax(-1), -1).tolist()
    knobs = {"gauge": "none", "estimator": "sampled", "anchor": "none"}
    expert, objective = project(logp, legal), bind("iq_learn", gamma=1.0, alpha=alpha, **knobs)
    loss = length = 0.0
    for text in oracles.texts(successor, [row.nonzero().squeeze(-1).tolist() for row in legal]):
        s, a = (torch.tensor(x).unsqueeze(0) for x in zip(*text, strict=True))
        prob = expert[s, a].sum().exp().item()
        loss += prob * objective(steps_of(s, a, q, logp, legal)).loss_t.sum().item()
        length += prob * len(text)
    assert iq_loss(problem, q[None], alpha).item() == pytest.approx(loss / length, rel=1e-10)


def steps_of(s: torch.Tensor, a: torch.Tensor, q: torch.Tensor, logp: torch.Tensor, legal: torch.Tensor) -> Steps:
    terminal = torch.zeros_like(a, dtype=torch.bool)
    terminal[:, -1] = True
    teacher = logp[s].masked_fill(~legal[s], -torch.inf)
    return Steps(q[s], teacher, legal[s], a, torch.ones_like(terminal), terminal, log_z_t=q[s].logsumexp(-1))
