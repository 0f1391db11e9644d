"""Solve top-p IQ-Learn without approximation: exact expectations, Newton's method, float64.

The only error left is the bias of the loss itself: with χ² at a finite α, the minimiser is not the expert.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tdistill.mdp.bellman import project, soft_value
from tdistill.mdp.tabular import TabularMDP, inverse_bellman, occupancy
from tdistill.objectives.parts.phi import phi_alpha

GRADIENT_TOLERANCE = 1e-10
MOST_STEPS = 200
FLAT = 1e-12  # curvature below this share of the largest is a gauge that the loss leaves free
HALVINGS = 30


@dataclass(frozen=True)
class Imitation:
    """Hold N problems: an MDP, the actions kept, and how often the expert takes each pair (0 off ``legal``)."""

    mdp: TabularMDP
    legal: Tensor  # [N, S, A]
    weight: Tensor  # [N, S, A] ρ_E, normalised to sum 1 over the pairs kept


def imitation(mdp: TabularMDP, legal: Tensor, expert_logp: Tensor, start: Tensor) -> Imitation:
    """Build the problem, with weights from the discounted occupancy of the expert projected onto ``legal``."""
    visits = occupancy(mdp, start, project(expert_logp, legal), legal)
    return Imitation(mdp, legal, visits / visits.sum((-2, -1), keepdim=True))


def iq_loss(problem: Imitation, q: Tensor, alpha: float) -> Tensor:
    """Return [N]  E_{ρ_E}[−φ(r) + V_p(s) − γ E V_p(s')] with r = T_p Q the inverse soft Bellman operator, χ² (``value_expert``)."""
    reward = inverse_bellman(problem.mdp, q, problem.legal)
    v = soft_value(q, problem.legal).unsqueeze(-1)
    value = v - q + reward  # V_p(s) − γ E V_p(s')
    phi = phi_alpha(reward, "chi2", alpha)
    return torch.where(problem.legal, problem.weight * (value - phi), 0.0).sum((-2, -1))


def solve(problem: Imitation, alpha: float, start: Tensor | None = None) -> Tensor:
    """Return [N, S, A] the minimiser of ``iq_loss`` over Q, by Newton's method on |curvature| with step halving.

    Raises:
        RuntimeError: the gradient does not vanish.
    """
    shape = problem.weight.shape
    x = (torch.zeros(shape, dtype=torch.float64) if start is None else start).flatten(1)

    def loss_of(flat: Tensor) -> Tensor:
        return iq_loss(problem, flat.view(shape), alpha)

    for _ in range(MOST_STEPS):
        gradient, hessian = _derivatives(problem, x, alpha)
        if gradient.abs().max() <= GRADIENT_TOLERANCE:
            return x.view(shape)
        values, vectors = torch.linalg.eigh(hessian)
        curvature = values.abs()
        free = curvature <= FLAT * curvature.amax(-1, keepdim=True)
        along = (vectors.mT @ gradient.unsqueeze(-1)).squeeze(-1) / curvature.masked_fill(free, torch.inf)
        step = -(vectors @ along.unsqueeze(-1)).squeeze(-1)
        x = _halved(loss_of, x, step)
    raise RuntimeError(f"Newton's method left a gradient of {gradient.abs().max().item():.1e} at alpha={alpha} after {MOST_STEPS} steps.")


def _derivatives(problem: Imitation, x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return gradient [N, D] and Hessian [N, D, D]; problems do not interact, so one backward per coordinate serves all of them."""
    q = x.detach().requires_grad_()
    total = iq_loss(problem, q.view(problem.weight.shape), alpha).sum()
    (gradient,) = torch.autograd.grad(total, q, create_graph=True)
    rows = [torch.autograd.grad(gradient[:, i].sum(), q, retain_graph=True)[0] for i in range(q.shape[1])]
    return gradient.detach(), torch.stack(rows, 1)


def _halved(loss_of: Callable[[Tensor], Tensor], x: Tensor, step: Tensor) -> Tensor:
    """Return x + t·step with the first t in 1, ½, ¼ … that does not raise each problem's loss (rounding aside)."""
    before = loss_of(x)
    t = torch.ones_like(before)
    for _ in range(HALVINGS):
        after = loss_of(x + t.unsqueeze(-1) * step)
        worse = ~(after <= before + 1e-14 * before.abs().clamp(min=1.0))
        if not worse.any():
            break
        t = torch.where(worse, 0.5 * t, t)
    return x + t.unsqueeze(-1) * step


def total_variation(problem: Imitation, q: Tensor, expert_logp: Tensor) -> Tensor:
    """Return [N]  E_{s~ρ_E} ½ Σ_a |proj_p π_Q − proj_p π_E|."""
    gap = (project(q, problem.legal).exp() - project(expert_logp, problem.legal).exp()).abs().sum(-1)
    return 0.5 * (problem.weight.sum(-1) * gap).sum(-1)


def shaping_residual(problem: Imitation, reward: Tensor, true_reward: Tensor) -> Tensor:
    """Return [N]  min over potentials c of max |true_reward − reward − (c(s) − γ E c(s'))| on the pairs kept (least squares, then max).

    Zero means that both rewards have the same soft-optimal policy (potential shaping: Ng, Harada & Russell 1999).
    """
    mdp = problem.mdp
    n_states = mdp.reward.shape[-2]
    shaping = torch.eye(n_states, dtype=torch.float64).unsqueeze(-2) - mdp.gamma[..., None, None, None] * mdp.transition
    rows = torch.where(problem.legal.unsqueeze(-1), shaping, 0.0).flatten(1, 2)
    gap = torch.where(problem.legal, true_reward - reward, 0.0).flatten(1).unsqueeze(-1)
    c = torch.linalg.lstsq(rows, gap).solution
    return (gap - rows @ c).abs().amax((-2, -1))


def bandit(expert: list[float]) -> tuple[Imitation, Tensor]:
    """Return a problem of one state and one choice, and the expert's log-probs. It is the smallest problem with a bias at a finite α."""
    prob = torch.tensor([[expert]], dtype=torch.float64)
    mdp = TabularMDP(prob.log(), torch.zeros(*prob.shape, 1, dtype=torch.float64), torch.tensor([0.99], dtype=torch.float64))
    return imitation(mdp, mdp.all_actions, prob.log(), torch.ones(1, 1, dtype=torch.float64)), prob.log()
