"""Solve soft control of finite MDPs exactly, on all actions or on the top-p ones, in float64.

A policy is given by its log-probs over the actions of ``legal`` (``bellman.project`` makes one of any scores). Batches of MDPs
of one size share their leading axes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tdistill.mdp.bellman import expectation, project, soft_value

TOLERANCE = 1e-12  # largest soft Bellman residual of an optimum, relative to the size of Q
MOST_ITERATIONS = 200


@dataclass(frozen=True)
class TabularMDP:
    """Hold finite MDPs of one size. What a row of ``transition`` lacks to 1 ends the episode, with V(terminal) = 0."""

    reward: Float[Tensor, "*N S A"]
    transition: Float[Tensor, "*N S A S"]
    gamma: Float[Tensor, "*N"]

    @property
    def all_actions(self) -> Bool[Tensor, "*N S A"]:
        """Return the unrestricted action space."""
        return torch.ones_like(self.reward, dtype=torch.bool)


def top_p_set(prob: Float[Tensor, "*N A"], p: Float[Tensor, "*#N"], max_candidates: int | None = None) -> Bool[Tensor, "*N A"]:
    """Return A_p: the fewest actions, by descending probability, whose mass reaches p; at most ``max_candidates`` of them."""
    ordered, order = prob.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    p = p.unsqueeze(-1)
    # At p = 1 the running sum may round up to 1 before the last action.
    keep = (before < p) | (p >= 1.0)
    if max_candidates is not None:
        keep = keep & (torch.arange(prob.shape[-1]) < max_candidates)
    return torch.zeros_like(keep).scatter(-1, order, keep)


def adaptive_set(prob: Float[Tensor, "*N A"], epsilon: Float[Tensor, "*#N"]) -> Bool[Tensor, "*N A"]:
    """Return the fewest actions of each state whose tail loss −log(kept mass) is at most ε; then κ = γ/(1−γ)·ε.

    That is A_p at p = exp(−ε): a budget per state on the loss that enters the bound is a fixed p.
    """
    ordered, order = prob.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    epsilon = epsilon.unsqueeze(-1)
    keep = (-before.log() > epsilon) | (epsilon <= 0.0)
    return torch.zeros_like(keep).scatter(-1, order, keep)


def backup(mdp: TabularMDP, v: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S A"]:
    """Return r(s,a) + γ Σ_s' P(s'|s,a) v(s')."""
    return mdp.reward + _discounted_mean(mdp, v)


def _discounted_mean(mdp: TabularMDP, v: Tensor) -> Tensor:
    return mdp.gamma[..., None, None] * (mdp.transition @ v[..., None, :, None]).squeeze(-1)


def policy_value(q: Float[Tensor, "*N S A"], logp: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]) -> Float[Tensor, "*N S"]:
    """Return E_{a~π}[Q(s,a) − log π(a|s)], the soft value of a policy."""
    return expectation(logp, q - torch.where(legal, logp, 0.0), legal)


def policy_operator(
    mdp: TabularMDP, q: Float[Tensor, "*N S A"], logp: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]
) -> Float[Tensor, "*N S A"]:
    """Return (B_p^π Q)(s,a) = r(s,a) + γ E_{s'} E_{a'~proj_p π}[Q(s',a') − log proj_p π(a'|s')], with ``logp`` = log proj_p π."""
    return backup(mdp, policy_value(q, logp, legal))


def inverse_bellman(mdp: TabularMDP, q: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]) -> Float[Tensor, "*N S A"]:
    """Return (T_p Q)(s,a) = Q(s,a) − γ E_{s'} V_p(s'): the reward for which Q is soft-optimal on ``legal``."""
    return q - _discounted_mean(mdp, soft_value(q, legal))


def state_transition(mdp: TabularMDP, logp: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]) -> Float[Tensor, "*N S S"]:
    """Return P_π(s'|s) = Σ_a π(a|s) P(s'|s,a)."""
    return torch.einsum("...sa,...sat->...st", torch.where(legal, logp, -torch.inf).exp(), mdp.transition)


def discounted_sum(
    mdp: TabularMDP, cost: Float[Tensor, "*N S"], logp: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]
) -> Float[Tensor, "*N S A"]:
    """Return E_π[Σ_{k≥1} γᵏ cost(s_{t+k}) | s_t = s, a_t = a], by one linear solve. cost ≡ 1 gives the effective horizon."""
    step = mdp.gamma[..., None, None] * state_transition(mdp, logp, legal)
    eye = torch.eye(cost.shape[-1], dtype=cost.dtype)
    return _discounted_mean(mdp, torch.linalg.solve(eye - step, cost.unsqueeze(-1)).squeeze(-1))


def soft_policy_q(mdp: TabularMDP, logp: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]) -> Float[Tensor, "*N S A"]:
    """Return Q^π, the fixed point of ``policy_operator``, at every action (also those that π never takes)."""
    return mdp.reward + discounted_sum(mdp, policy_value(mdp.reward, logp, legal), logp, legal)


def soft_optimal_q(mdp: TabularMDP, legal: Bool[Tensor, "*N S A"]) -> Float[Tensor, "*N S A"]:
    """Return Q*_p, the fixed point of Q = r + γ E_{s'} V_p(s') with V_p over ``legal``; Q* when every action is legal.

    Soft policy iteration π ← softmax(Q^π), which is Newton's method on that equation, until the residual of value iteration
    is at most ``TOLERANCE`` times the size of Q.

    Raises:
        RuntimeError: no convergence (γ = 1 with an endless episode has no solution).
    """
    q = mdp.reward
    for _ in range(MOST_ITERATIONS):
        residual = (backup(mdp, soft_value(q, legal)) - q).abs()
        if bool((residual.amax((-2, -1)) <= TOLERANCE * q.abs().amax((-2, -1)).clamp(min=1.0)).all()):
            return q
        q = soft_policy_q(mdp, project(q, legal), legal)
    raise RuntimeError(f"Soft policy iteration left a Bellman residual of {residual.max().item():.1e} after {MOST_ITERATIONS} rounds.")


def contraction_factor(mdp: TabularMDP, legal: Bool[Tensor, "*N S A"]) -> Float[Tensor, "*N"]:
    """Return the exact Lipschitz constant of B_p^π in the ∞-norm over supported pairs: γ · max_{s, a∈A_p(s)} Σ_s' P(s'|s,a).

    B_p^π is affine with a nonnegative linear part whose rows sum to that, for every π; 1 is its worst direction.
    """
    alive = torch.where(legal, mdp.transition.sum(-1), 0.0)
    return mdp.gamma * alive.amax((-2, -1))


def occupancy(
    mdp: TabularMDP, start: Float[Tensor, "*N S"], logp: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]
) -> Float[Tensor, "*N S A"]:
    """Return ρ(s,a) = Σ_t γᵗ P(s_t = s, a_t = a) under π from ``start``: discounted visits, which sum to 1/(1−γ) without terminals."""
    step = mdp.gamma[..., None, None] * state_transition(mdp, logp, legal)
    eye = torch.eye(start.shape[-1], dtype=start.dtype)
    visits = torch.linalg.solve((eye - step).mT, start.unsqueeze(-1))
    return visits * torch.where(legal, logp, -torch.inf).exp()


@dataclass(frozen=True)
class Restriction:
    """Hold what the cut of the actions of π* = softmax(Q*) to ``legal`` does to values. Gaps are over the pairs of ``legal``."""

    legal: Bool[Tensor, "*N S A"]
    tail_loss: Float[Tensor, "*N S"]  # −log of the mass that π* has on the actions kept
    q_star: Float[Tensor, "*N S A"]  # Q*: optimal over all actions
    q_projected: Float[Tensor, "*N S A"]  # Q^{proj_p π*}: of the projected policy
    q_restricted: Float[Tensor, "*N S A"]  # Q*_p: optimal over the actions kept
    predicted_gap: Float[Tensor, "*N S A"]  # E_{proj_p π*} Σ_{k≥1} γᵏ·tail_loss(s_{t+k})
    horizon: Float[Tensor, "*N S A"]  # E_{proj_p π*} Σ_{k≥1} γᵏ·[not ended]

    def largest(self, x: Float[Tensor, "*N S A"]) -> Float[Tensor, "*N"]:
        """Return the maximum over the pairs kept."""
        return torch.where(self.legal, x, -torch.inf).amax((-2, -1))


def restrict(mdp: TabularMDP, q_star: Float[Tensor, "*N S A"], legal: Bool[Tensor, "*N S A"]) -> Restriction:
    """Solve everything that P2–P4 compare.

    ``predicted_gap`` equals Q* − Q^{proj_p π*} exactly: E_{proj_p π*}[Q* − log proj_p π*] = V* − tail_loss, so each state
    on the way costs its own tail loss, discounted. κ(p) takes −log p for all of them, for ever.
    """
    logp = project(q_star, legal)
    tail_loss = (soft_value(q_star, torch.ones_like(legal)) - soft_value(q_star, legal)).clamp(min=0.0)
    return Restriction(
        legal=legal,
        tail_loss=tail_loss,
        q_star=q_star,
        q_projected=soft_policy_q(mdp, logp, legal),
        q_restricted=soft_optimal_q(mdp, legal),
        predicted_gap=discounted_sum(mdp, tail_loss, logp, legal),
        horizon=discounted_sum(mdp, torch.ones_like(tail_loss), logp, legal),
    )
