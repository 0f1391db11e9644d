"""Exact soft control against loops and enumeration, and the paper's P1–P4 on random MDPs."""

import math

import oracles_tabular as oracles
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tdistill.mdp.bellman import kappa, project, soft_value
from tdistill.mdp.tabular import (
    Restriction,
    TabularMDP,
    adaptive_set,
    backup,
    contraction_factor,
    discounted_sum,
    inverse_bellman,
    occupancy,
    policy_operator,
    restrict,
    soft_optimal_q,
    soft_policy_q,
    top_p_set,
)
from tdistill.theory.instances import Family, random_mdps, self_loop, token_tree

TIGHT = {"rtol": 1e-9, "atol": 1e-10}


@st.composite
def mdps(draw: st.DrawFn) -> TabularMDP:
    """One MDP of 2–8 states and actions; γ, how peaked the optimal policy is, terminals and chance all vary."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    gamma = torch.tensor([draw(st.sampled_from([0.0, 0.3, 0.9, 0.99]))], dtype=torch.float64)
    family = Family(
        draw(st.integers(2, 8)),
        draw(st.integers(2, 8)),
        scale=draw(st.sampled_from([0.1, 1.0, 5.0])),
        end=draw(st.sampled_from([0.0, 0.3])),
        stochastic=draw(st.booleans()),
    )
    return random_mdps(g, gamma, family)


ps = st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0])


def full(p: float, like: Tensor) -> Tensor:
    return torch.full(like.shape[:-1], p, dtype=torch.float64)


def cut(mdp: TabularMDP, p: float, cap: int | None = None) -> Restriction:
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    return restrict(mdp, q_star, top_p_set(q_star.softmax(-1), full(p, q_star), cap))


def vanishing() -> TabularMDP:
    """Values near γ = 1 so far apart that the probability of all tokens of a state but one is 0 in float64."""
    reward = torch.tensor([[[7.7, -1.5, -10.9, 2.8], [-5.4, -7.0, 2.0, 4.2]]], dtype=torch.float64)
    successor = [[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]]
    return TabularMDP(reward, torch.tensor([successor], dtype=torch.float64), torch.tensor([0.99], dtype=torch.float64))


def sets_of(legal: Tensor) -> list[list[int]]:
    return [row.nonzero().squeeze(-1).tolist() for row in legal]


@settings(max_examples=40, deadline=None)
@given(mdps(), ps)
@example(vanishing(), 1.0)
def test_solutions_equal_those_of_plain_loops(mdp, p):
    r = cut(mdp, p)
    reward, transition, gamma = mdp.reward[0].tolist(), mdp.transition[0].tolist(), mdp.gamma.item()
    everything = sets_of(mdp.all_actions[0])
    q_star = oracles.soft_optimal(reward, transition, gamma, everything)
    assert_close(r.q_star[0], torch.tensor(q_star, dtype=torch.float64), **TIGHT)
    sets = sets_of(r.legal[0])
    prob = r.q_star[0].softmax(-1).tolist()
    assert sets == [sorted(oracles.top_p(row, p)) for row in prob]
    assert_close(r.q_restricted[0], torch.tensor(oracles.soft_optimal(reward, transition, gamma, sets), dtype=torch.float64), **TIGHT)
    policy = [{a: row[a] / sum(row[b] for b in kept) for a in kept} for row, kept in zip(prob, sets, strict=True)]
    assert_close(r.q_projected[0], torch.tensor(oracles.soft_policy(reward, transition, gamma, policy), dtype=torch.float64), **TIGHT)


@settings(max_examples=300, deadline=None)
@given(mdps(), ps, st.one_of(st.none(), st.integers(1, 4)))
def test_p2_p3_p4_hold_and_the_projection_costs_exactly_the_discounted_tail_loss(mdp, p, cap):
    r = cut(mdp, p, cap)
    slack = 1e-9 * max(1.0, r.q_star.abs().max().item())
    worst = p if cap is None else min(1.0, math.exp(-r.tail_loss.max().item()))
    bound = kappa(worst, mdp.gamma.item())
    assert r.largest((r.q_star - r.q_projected).abs()) <= bound + slack  # P2
    assert r.largest(r.q_projected - r.q_restricted) <= slack  # P3
    assert r.largest(r.q_restricted - r.q_star) <= slack
    assert r.largest((r.q_star - r.q_restricted).abs()) <= bound + slack  # P4
    assert_close(r.predicted_gap, r.q_star - r.q_projected, rtol=1e-9, atol=slack)


@settings(max_examples=200, deadline=None)
@given(mdps(), ps, st.integers(0, 1000))
def test_p1_the_operator_contracts_by_gamma_and_a_shift_attains_its_factor(mdp, p, seed):
    legal = cut(mdp, p).legal
    g = torch.Generator().manual_seed(seed)
    q, other, policy = (3.0 * torch.randn(mdp.reward.shape, generator=g, dtype=torch.float64) for _ in range(3))
    logp = project(policy, legal)

    def ratio(a: Tensor, b: Tensor) -> float:
        apart = (policy_operator(mdp, a, logp, legal) - policy_operator(mdp, b, logp, legal)).abs()
        return (apart[legal].max() / (a - b).abs()[legal].max()).item()

    factor = contraction_factor(mdp, legal).item()
    assert factor <= mdp.gamma.item() + 1e-15
    assert ratio(q, other) <= factor + 1e-12
    assert ratio(q, q + 1.0) == pytest.approx(factor, abs=1e-12)
    nonlinear = (backup(mdp, soft_value(q, legal)) - backup(mdp, soft_value(other, legal))).abs()[legal].max()
    assert nonlinear <= factor * (q - other).abs()[legal].max() + 1e-12


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0]))
def test_a_budget_on_the_tail_loss_is_top_p_at_its_exponential(seed, n_actions, epsilon):
    g = torch.Generator().manual_seed(seed)
    prob = (2.0 * torch.randn(5, n_actions, generator=g, dtype=torch.float64)).softmax(-1)
    legal = adaptive_set(prob, torch.full((5,), epsilon, dtype=torch.float64))
    assert torch.equal(legal, top_p_set(prob, torch.full((5,), math.exp(-epsilon), dtype=torch.float64)))
    if epsilon > 0:
        assert sets_of(legal) == [sorted(oracles.fewest_with_tail_loss(row, epsilon)) for row in prob.tolist()]
        assert ((prob * legal).sum(-1).log() >= -epsilon - 1e-12).all()
    else:
        assert legal.all()


@settings(max_examples=100, deadline=None)
@given(mdps(), st.sampled_from([0.001, 0.1, 1.0]))
def test_adaptive_sets_cost_at_most_their_epsilon(mdp, epsilon):
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    r = restrict(mdp, q_star, adaptive_set(q_star.softmax(-1), torch.full(q_star.shape[:-1], epsilon, dtype=torch.float64)))
    gamma = mdp.gamma.item()
    assert r.largest(r.q_star - r.q_restricted) <= gamma / (1 - gamma) * epsilon + 1e-9 * max(1.0, q_star.abs().max().item())


def test_the_bound_is_attained_where_every_action_leads_back():
    reward = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    for gamma in (0.5, 0.9, 0.99):
        r = cut(self_loop(reward, gamma), 0.8)
        assert r.largest(r.q_star - r.q_restricted).item() == pytest.approx(kappa(0.8, gamma), rel=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_a_tree_of_texts_equals_its_enumeration(gamma):
    mdp = token_tree(torch.Generator().manual_seed(5), vocab=4, depth=4, gamma=gamma)
    assert mdp.reward.shape == (1 + 3 + 9 + 27, 4)
    successor = torch.where(mdp.transition.sum(-1) > 0, mdp.transition.argmax(-1), -1).tolist()
    reward, r = mdp.reward.tolist(), cut(mdp, 0.8)
    for legal, q in ((mdp.all_actions, r.q_star), (r.legal, r.q_restricted)):
        sets = sets_of(legal)
        value = soft_value(q, legal)[0].item()
        assert value == pytest.approx(oracles.text_value(successor, reward, gamma, sets), abs=1e-11)
        if gamma == 1.0:  # then the value is the log-partition of whole texts
            totals = [math.fsum(reward[s][a] for s, a in text) for text in oracles.texts(successor, sets)]
            assert value == pytest.approx(oracles.lse(totals), abs=1e-11)


@settings(max_examples=50, deadline=None)
@given(mdps(), ps)
def test_the_teacher_is_soft_optimal_for_its_own_log_probability_with_value_zero(mdp, p):
    logp = (2.0 * mdp.reward).log_softmax(-1)
    own = TabularMDP(logp, mdp.transition, mdp.gamma)
    q_star = soft_optimal_q(own, own.all_actions)
    assert_close(q_star, logp, rtol=0, atol=1e-10)
    legal = top_p_set(logp.exp(), full(p, logp))
    v = (1.0 - mdp.gamma.unsqueeze(-1)) * soft_value(soft_optimal_q(own, legal), legal)
    assert (v <= 1e-10).all()
    assert (v >= math.log(p) - 1e-10).all()


@settings(max_examples=50, deadline=None)
@given(mdps(), ps)
def test_operators_agree_with_each_other(mdp, p):
    r = cut(mdp, p)
    assert_close(inverse_bellman(mdp, r.q_restricted, r.legal), mdp.reward, rtol=0, atol=1e-9 * max(1.0, r.q_star.abs().max().item()))
    logp = project(r.q_star, r.legal)
    assert_close(policy_operator(mdp, r.q_projected, logp, r.legal), r.q_projected, **TIGHT)
    assert_close(soft_policy_q(mdp, project(r.q_restricted, r.legal), r.legal), r.q_restricted, rtol=1e-9, atol=1e-8)
    start = torch.full(mdp.reward.shape[:-1], 1.0 / mdp.reward.shape[-2], dtype=torch.float64)
    visits = occupancy(mdp, start, logp, r.legal)
    assert (visits[~r.legal] == 0).all()
    cost = torch.arange(mdp.reward.shape[-2], dtype=torch.float64).expand_as(start)
    # Σ_s,a ρ(s,a)·cost(s) counts the start too, which discounted_sum begins after.
    later = (start.unsqueeze(-1) * logp.exp() * discounted_sum(mdp, cost, logp, r.legal)).sum()
    assert (visits.sum(-1) * cost).sum().item() == pytest.approx(((start * cost).sum() + later).item(), rel=1e-9)


def test_an_endless_episode_without_discount_is_refused():
    with pytest.raises(RuntimeError, match="Bellman residual|singular"):
        soft_optimal_q(self_loop(torch.zeros(2, dtype=torch.float64), 1.0), torch.ones(1, 2, dtype=torch.bool))
