"""Test P1–P4 on many random MDPs: count how often they fail (expected: never) and measure how tight they are."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from tdistill.mdp.bellman import kappa, project
from tdistill.mdp.tabular import (
    Restriction,
    TabularMDP,
    adaptive_set,
    contraction_factor,
    policy_operator,
    restrict,
    soft_optimal_q,
    top_p_set,
)
from tdistill.theory.instances import Family, random_mdps

SIZES = range(2, 9)  # states and actions of an instance
RULES = ("top_p", "capped", "adaptive")
SLACK = 1e-9  # a violation is an excess over this, relative to the size of Q: rounding is up to some 1e-11 of it
PAIRS = 4  # random pairs of Q-functions per instance, for the measured contraction
LARGEST_GAMMA = 0.99
QUANTILES = (0.05, 0.5, 0.95, 1.0)
BINS = 20  # of the histogram of gap/κ
MEASURABLE = 1e-4  # nats: below it gap/κ is a ratio of rounding errors


def kappas(p: Tensor, gamma: Tensor) -> Tensor:
    """Return κ(p) of each instance."""
    return torch.tensor([kappa(min(a, 1.0), b) for a, b in zip(p.tolist(), gamma.tolist(), strict=True)], dtype=torch.float64)


def bound_columns(mdp: TabularMDP, r: Restriction, bound: Tensor) -> dict[str, Tensor]:
    """Return for each instance the gaps, the bound, and by how much each proposition is exceeded (relative to the size of Q)."""
    size = r.q_star.abs().amax((-2, -1)).clamp(min=1.0)
    gap_projected = r.largest((r.q_star - r.q_projected).abs())
    gap_restricted = r.largest((r.q_star - r.q_restricted).abs())
    return {
        "gap_projected": gap_projected,
        "gap_restricted": gap_restricted,
        "bound": bound,
        "excess_p2": (gap_projected - bound) / size,
        "excess_p3": torch.maximum(r.largest(r.q_projected - r.q_restricted), r.largest(r.q_restricted - r.q_star)) / size,
        "excess_p4": (gap_restricted - bound) / size,
        "identity_error": r.largest((r.q_star - r.q_projected - r.predicted_gap).abs()) / size,
    }


def measured_contraction(g: Generator, mdp: TabularMDP, legal: Tensor) -> Tensor:
    """Return the largest ‖B_p^π Q − B_p^π Q'‖ / ‖Q − Q'‖ over supported pairs, for random π: random pairs, and Q' = Q + 1."""

    def draw() -> Tensor:
        return 10.0 * torch.randn(mdp.reward.shape, generator=g, dtype=torch.float64)

    def norm(x: Tensor) -> Tensor:
        return torch.where(legal, x, 0.0).abs().amax((-2, -1))

    ratios = []
    for i in range(PAIRS + 1):
        logp, q = project(draw() / 5.0, legal), draw()
        other = q + 1.0 if i == 0 else draw()
        ratios.append(norm(policy_operator(mdp, q, logp, legal) - policy_operator(mdp, other, logp, legal)) / norm(q - other))
    return torch.stack(ratios).amax(0)


def check_instances(g: Generator, mdp: TabularMDP, p: Tensor, cap: int) -> dict[str, dict[str, Tensor]]:
    """Check all propositions on a batch of MDPs, for A_p, for A_p cut to ``cap`` actions, and for the adaptive set with ε = −log p."""
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    prob, p_s = q_star.softmax(-1), p.unsqueeze(-1)
    sets = {"top_p": top_p_set(prob, p_s), "capped": top_p_set(prob, p_s, cap), "adaptive": adaptive_set(prob, -p_s.log())}
    columns = {}
    for rule, legal in sets.items():
        r = restrict(mdp, q_star, legal)
        worst = (-r.tail_loss.amax(-1)).exp()  # the least mass kept stands for p where a cap may undercut it
        columns[rule] = bound_columns(mdp, r, kappas(worst if rule == "capped" else p, mdp.gamma))
        columns[rule]["excess_p1"] = contraction_factor(mdp, legal) - mdp.gamma
        columns[rule]["excess_p1_measured"] = measured_contraction(g, mdp, legal) - mdp.gamma
        columns[rule]["share_kept"] = legal.double().mean((-2, -1))
    return columns


def batches(g: Generator, n_instances: int) -> Iterator[tuple[TabularMDP, Tensor, int]]:
    """Yield batches of ``n_instances`` MDPs in all, or a few more, each with p and a cap on |A_p|.

    Their states and actions have every size in ``SIZES``; they are stochastic or deterministic, with and without terminals. γ lies in
    [0, .99], more often near 1; p lies in (.05, 1); rewards are flat to peaked.
    """
    shapes = [(s, a, kind) for s in SIZES for a in SIZES for kind in (True, False)]
    each = math.ceil(n_instances / len(shapes))
    for n_states, n_actions, stochastic in shapes:
        uniform = torch.rand(3, each, generator=g, dtype=torch.float64)
        gamma = LARGEST_GAMMA * uniform[0] ** 0.5
        end = 0.3 * float(torch.randint(2, (), generator=g))
        mdp = random_mdps(g, gamma, Family(n_states, n_actions, 10.0 ** (2.0 * uniform[1] - 1.0), end, stochastic))
        yield mdp, 0.05 + 0.949 * uniform[2], int(torch.randint(1, n_actions + 1, (), generator=g))


N_BATCHES = len(SIZES) ** 2 * 2


def summarise(columns: list[dict[str, dict[str, Tensor]]]) -> list[dict[str, Any]]:
    """Return one row for each rule: instances, violations of each proposition, largest excess, quantiles and histogram of gap/κ."""
    rows: list[dict[str, Any]] = []
    for rule in RULES:
        joined = {key: torch.cat([c[rule][key] for c in columns]) for key in columns[0][rule]}
        row: dict[str, Any] = {"rule": rule, "instances": len(joined["bound"])}
        for key in ("p1", "p1_measured", "p2", "p3", "p4"):
            row[f"violations_{key}"] = int((joined[f"excess_{key}"] > SLACK).sum())
            row[f"largest_excess_{key}"] = joined[f"excess_{key}"].max().item()
        row["largest_identity_error"] = joined["identity_error"].max().item()
        bounded = joined["bound"] > MEASURABLE
        for key in ("gap_projected", "gap_restricted"):
            ratio = joined[key][bounded] / joined["bound"][bounded]
            row |= {f"{key}/kappa_{q:g}": ratio.quantile(q).item() for q in QUANTILES}
        row["histogram"] = torch.histc(ratio.clamp(0.0, 1.0), BINS, 0.0, 1.0).int().tolist()
        row["mean_share_kept"] = joined["share_kept"].mean().item()
        rows.append(row)
    return rows
