"""Compute the curves of the report: the cost of a cut and its bound, the bias of a finite α, and regret by horizon."""

from typing import Any

import torch
from torch import Generator, Tensor

from tdistill.mdp.bellman import kappa
from tdistill.mdp.tabular import inverse_bellman, restrict, soft_optimal_q, top_p_set
from tdistill.theory.compounding import METHODS, outcome, train_learner
from tdistill.theory.imitation import bandit, imitation, shaping_residual, solve, total_variation
from tdistill.theory.instances import Family, Road, random_mdps

GAMMAS = (0.5, 0.9, 0.99)
PS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
TOP_KS = (1, 2, 3, 5, 8, 12, 16, 24)
N_STATES, N_ACTIONS = 8, 32

ALPHAS = (1000.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)  # downwards: each starts from the one before
BANDIT_EXPERT = [0.7, 0.2, 0.07, 0.03]
BANDIT_ALPHAS = (0.1, 1.0, 10.0, 100.0)
BIAS_PS = (1.0, 0.8)
BIAS_GAMMAS = (0.0, 0.9, 0.99)
BIAS_STATES, BIAS_ACTIONS = 6, 5


def cut_rows(gamma: float, n_mdps: int, seed: int) -> list[dict[str, Any]]:
    """Return the gaps and bounds of random MDPs that are cut by top-p and by top-k. They have 8 states, 32 actions and about 20 steps."""
    mdp = random_mdps(Generator().manual_seed(seed), torch.full((n_mdps,), gamma, dtype=torch.float64), Family(N_STATES, N_ACTIONS))
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    prob = q_star.softmax(-1)
    cuts: list[tuple[str, float, Tensor]] = [("top_p", p, top_p_set(prob, _full(p, prob))) for p in PS]
    cuts += [("top_k", k, top_p_set(prob, _full(1.0, prob), k)) for k in TOP_KS]
    rows = []
    for rule, parameter, legal in cuts:
        r = restrict(mdp, q_star, legal)
        worst = r.tail_loss.amax(-1)
        stages = {
            "kappa_kept": gamma / (1.0 - gamma) * worst,
            "kappa_horizon": worst * r.largest(r.horizon),
            "gap_projected": r.largest(r.q_star - r.q_projected),
            "gap_restricted": r.largest(r.q_star - r.q_restricted),
        }
        row: dict[str, Any] = {"rule": rule, "parameter": parameter, "gamma": gamma, "mdps": n_mdps}
        if rule == "top_p":
            row["kappa"] = kappa(parameter, gamma)
        row |= {key: value.median().item() for key, value in stages.items()}
        row |= {f"{key}_max": stages[key].max().item() for key in ("gap_projected", "gap_restricted")}
        row["actions_kept"] = legal.double().sum(-1).mean().item()
        rows.append(row)
    return rows


def _full(p: float, prob: Tensor) -> Tensor:
    return torch.full(prob.shape[:-1], p, dtype=prob.dtype)


def bandit_rows() -> list[dict[str, Any]]:
    """Return the exact minimiser of IQ-Learn on one choice among four tokens, for each α."""
    problem, _ = bandit(BANDIT_EXPERT)
    return [{"alpha": alpha, "policy": solve(problem, alpha)[0, 0].softmax(-1).tolist()} for alpha in BANDIT_ALPHAS]


def bias_rows(gamma: float, p: float, n_mdps: int, seed: int) -> list[dict[str, Any]]:
    """Return by α the distance of the exact minimiser from the expert, and of its reward from the expert's up to shaping.

    On A_p the expert is soft-optimal for T_p Q* = r + γ E[tail loss of s'], which is the reward to be found.
    """
    gammas = torch.full((n_mdps,), gamma, dtype=torch.float64)
    mdp = random_mdps(Generator().manual_seed(seed), gammas, Family(BIAS_STATES, BIAS_ACTIONS, scale=1.0))
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    legal = top_p_set(q_star.softmax(-1), _full(p, q_star))
    start = torch.full((n_mdps, BIAS_STATES), 1.0 / BIAS_STATES, dtype=torch.float64)
    problem = imitation(mdp, legal, q_star.log_softmax(-1), start)
    rows, q = [], None
    for alpha in ALPHAS:
        q = solve(problem, alpha, q)
        reward = inverse_bellman(mdp, q, legal)
        distance = total_variation(problem, q, q_star)
        row: dict[str, Any] = {"gamma": gamma, "p": p, "alpha": alpha, "mdps": n_mdps, **mean_stderr("tv", distance)}
        row["reward_rms"] = (problem.weight * reward.square()).sum((-2, -1)).mean().sqrt().item()
        row["shaping_residual_max"] = shaping_residual(problem, reward, inverse_bellman(mdp, q_star, legal)).max().item()
        rows.append(row)
    return rows


def compounding_row(road: Road, name: str, horizon: int, n_steps: int, seed: int) -> dict[str, Any]:
    """Return one method at one horizon: exact outcomes, mean and standard error over the seeds of ``road``, and each seed's regret."""
    result = outcome(road, train_learner(road, METHODS[name], horizon, n_steps, seed), horizon)
    row: dict[str, Any] = {"method": name, "horizon": horizon, "seeds": len(result.regret), "steps": n_steps}
    for key in ("regret", "return_lost", "off_road", "cloning_error"):
        row |= mean_stderr(key, getattr(result, key))
    return row | {"regrets": result.regret.tolist()}


def mean_stderr(key: str, x: Tensor) -> dict[str, float]:
    """Return mean and standard error over the leading axis; the standard error of one value is NaN."""
    stderr = x.std().item() / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return {key: x.mean().item(), f"{key}_stderr": stderr}
