"""Slow truth for inverse soft Q-learning and its relatives: one loop per loss, on float64 scalars, written from the equations."""

import math
from dataclasses import dataclass

import oracles
import torch
from oracles import Response
from torch import Tensor

ZERO = torch.zeros((), dtype=torch.float64)


def clip_below(q: Tensor, q_min: float | None) -> Tensor:
    """max(q, q_min); of the gradient at a clipped q, the part that makes descent raise q."""
    if q_min is None or q.item() >= q_min:
        return q
    clipped = q + (q_min - q.item())
    if clipped.requires_grad:
        clipped.register_hook(lambda g: g if g.item() < 0 else torch.zeros_like(g))
    return clipped


# Where the tangent takes over, in units of α, with the unit φ and its derivative.
MARGINS = {"hellinger": -1 / 2, "kl": -5.0, "js": -math.log(2) / 2}
UNIT_PHI = {
    "hellinger": (lambda u: u / (1 + u), lambda u: 1 / (1 + u) ** 2),
    "kl": (lambda u: 1 - torch.exp(-u), lambda u: torch.exp(-u)),
    "js": (lambda u: torch.log(2 - torch.exp(-u)), lambda u: torch.exp(-u) / (2 - torch.exp(-u))),
}


def phi(x: Tensor, name: str, alpha: float) -> Tensor:
    """φ_α(x) = α φ(x/α), its tangent below the margin."""
    if name == "linear":
        return x
    if name == "chi2":
        return x - x * x / (4 * alpha)
    if name == "tv":
        return x if x.item() <= alpha / 2 else torch.tensor(alpha / 2, dtype=torch.float64)
    value, slope = UNIT_PHI[name]
    margin = torch.tensor(MARGINS[name], dtype=torch.float64)
    if x.item() / alpha >= MARGINS[name]:
        return alpha * value(x / alpha)
    return alpha * (value(margin) + slope(margin) * (x / alpha - margin))


@dataclass
class TdStep:
    """What top-p inverse soft Q-learning computes at one step; ``q`` and ``reward`` are None where it contributes nothing."""

    loss: Tensor
    v: Tensor
    q: Tensor | None = None
    reward: Tensor | None = None
    clipped_fraction: float = 0.0


def q_rows(response: Response, gauge: str, q_min: float | None = None) -> tuple[list[dict[int, Tensor]], list[float]]:
    """Q at the candidates of each state, and the share of them that the clip holds."""
    rows, fractions = [], []
    for t, inside in enumerate(response.candidates):
        c = oracles.gauge_shift(response, t, gauge)
        raw = {a: response.logits[t][a] - c for a in inside}
        fractions.append(sum(q_min is not None and x.item() < q_min for x in raw.values()) / len(raw))
        rows.append({a: clip_below(x, q_min) for a, x in raw.items()})
    return rows, fractions


def counted(response: Response, t: int) -> bool:
    return response.tokens[t] in response.candidates[t] and (response.finished or t < len(response) - 1)


def discount_weight(n_steps: int, t: int, gamma: float) -> float:
    """w_t = T(1−γ)γ^t/(1−γ^T), 1 at γ = 1."""
    return 1.0 if gamma == 1.0 else n_steps * (1 - gamma) * gamma**t / (1 - gamma**n_steps)


def iq_learn(
    response: Response,
    *,
    gamma: float,
    alpha: float,
    phi: str = "chi2",
    value_term: str = "value_expert",
    phi_on: str = "expert",
    gauge: str = "none",
    estimator: str = "sampled",
    terminal: str = "zero",
    anchor: str = "none",
    anchor_weight: float = 1.0,
    q_min: float | None = None,
) -> list[TdStep]:
    """−φ(r_t) + value term with r_t = Q(s_t,a_t) − γ V_p(s_{t+1}), plus the anchor."""
    q, fractions = q_rows(response, gauge, q_min)
    v = [oracles.log_sum_exp(list(row.values())) for row in q]
    is_expert = response.expert
    best = {"chi2": 2 * alpha, "tv": alpha / 2}
    end = torch.tensor(best[phi] / (1 - gamma) if terminal == "absorbing" and is_expert else 0.0, dtype=torch.float64)
    steps = []
    for t, token in enumerate(response.tokens):
        step = TdStep(loss=ZERO, v=v[t], clipped_fraction=fractions[t])
        if counted(response, t):
            v_next = end if t == len(response) - 1 else v[t + 1]
            step.q = q[t][token]
            step.reward = step.q - gamma * v_next
            first = first_term(response, t, q[t], v_next, gamma, alpha, phi, estimator)
            if not is_expert:  # the curvature alone, or nothing
                linear = first_term(response, t, q[t], v_next, gamma, alpha, "linear", estimator)
                first = first - linear if phi_on == "all" else ZERO
            if value_term == "v0":
                weight = discount_weight(len(response), t, gamma)
                step.loss = -weight * first
                if is_expert and (t == 0 or not counted(response, t - 1)):
                    step.loss = step.loss + weight * v[t]
                if is_expert and t < len(response) - 1 and not counted(response, t + 1):
                    step.loss = step.loss - weight * gamma * v[t + 1]
            else:
                step.loss = -first + (v[t] - gamma * v_next if is_expert or value_term == "value_mix" else 0.0)
        step.loss = step.loss + anchor_weight * oracles.anchor_term(response, t, anchor)
        steps.append(step)
    return steps


def first_term(
    response: Response, t: int, q: dict[int, Tensor], v_next: Tensor, gamma: float, alpha: float, name: str, estimator: str
) -> Tensor:
    """φ at the token taken, or its mean over the projected teacher."""
    if estimator == "sampled":
        return phi(q[response.tokens[t]] - gamma * v_next, name, alpha)
    mass = sum(math.exp(response.teacher[t][a]) for a in q)
    total = ZERO
    for a, q_a in q.items():
        total = total + math.exp(response.teacher[t][a]) / mass * phi(q_a - gamma * v_next, name, alpha)
    return total


def extended_fraction(response: Response, t: int, *, gamma: float, alpha: float, phi: str, gauge: str, estimator: str = "sampled") -> float:
    """Share of the rewards at a counted step of the expert at which φ is its tangent (tv: below −α/2)."""
    q, _ = q_rows(response, gauge)
    v_next = ZERO if t == len(response) - 1 else oracles.log_sum_exp(list(q[t + 1].values()))
    below = {a: float(q_a.item() - gamma * v_next.item() < {**MARGINS, "tv": -0.5}[phi] * alpha) for a, q_a in q[t].items()}
    if estimator == "sampled":
        return below[response.tokens[t]]
    mass = sum(math.exp(response.teacher[t][a]) for a in below)
    return sum(math.exp(response.teacher[t][a]) / mass * x for a, x in below.items())


def q_regression(
    response: Response,
    *,
    r_expert: float,
    r_other: float,
    gamma: float,
    bound: float = math.inf,
    other_weight: float = 1.0,
    other: str = "untaken",
    gauge: str = "none",
    terminal: str = "absorbing",
    stop_target: bool = False,
    anchor: str = "none",
    anchor_weight: float = 1.0,
    target_network: Response | None = None,
) -> list[Tensor]:
    """(Q − (r + γV'))² with one reward for the expert's steps and one for others, plus the anchor."""
    q, _ = q_rows(response, gauge)
    later_q, _ = q_rows(target_network or response, gauge)

    def target(t: int, reward: float) -> Tensor:
        if t < len(response) - 1:
            v_next = oracles.log_sum_exp(list(later_q[t + 1].values()))
        else:
            v_next = torch.tensor(reward / (1 - gamma) if terminal == "absorbing" else 0.0, dtype=torch.float64)
        if v_next.item() > bound:
            v_next = torch.tensor(bound, dtype=torch.float64)
        elif v_next.item() < -bound:
            v_next = torch.tensor(-bound, dtype=torch.float64)
        return reward + gamma * (v_next.detach() if stop_target else v_next)

    losses = []
    for t, token in enumerate(response.tokens):
        loss = ZERO
        if counted(response, t) and response.expert:
            loss = (q[t][token] - target(t, r_expert)) ** 2
            if other == "untaken":
                z = sum(math.exp(response.logits[t][a].item()) for a in q[t])
                for b in q[t]:
                    if b != token:
                        policy = math.exp(response.logits[t][b].item()) / z
                        loss = loss + other_weight * policy * (q[t][b] - target(t, r_other)) ** 2
        elif counted(response, t) and other == "rollouts":
            loss = other_weight * (q[t][token] - target(t, r_other)) ** 2
        losses.append(loss + anchor_weight * oracles.anchor_term(response, t, anchor))
    return losses


def sqil(response: Response, **knobs: object) -> list[Tensor]:
    """Reward 1 for the expert, 0 for others."""
    return q_regression(response, r_expert=1.0, r_other=0.0, **knobs)  # type: ignore[arg-type]


def ls_iq(response: Response, *, gamma: float, c: float, stop_target: bool = True, **knobs: object) -> list[Tensor]:
    """Rewards ±1/c, V' clipped to ±1/(c(1−γ))."""
    bound = 1 / (c * (1 - gamma))
    return q_regression(response, r_expert=1 / c, r_other=-1 / c, gamma=gamma, bound=bound, stop_target=stop_target, **knobs)  # type: ignore[arg-type]


def bd_released(response: Response, *, gamma: float, alpha: float, q_min: float) -> list[Tensor]:
    """V_p − mean_V Q + mean_V (Q − γV')²/(4α), over a vocabulary row that holds 0 off A_p; the last position dropped."""
    rows = []
    for t, inside in enumerate(response.candidates):
        c = oracles.gauge_shift(response, t, "max")
        q = {a: response.logits[t][a] - c for a in inside}
        rows.append({a: x if x.item() >= q_min else torch.tensor(q_min, dtype=torch.float64) for a, x in q.items()})
    v = [oracles.log_sum_exp(list(row.values())) for row in rows]
    losses = [ZERO] * len(response)
    for t in range(len(response) - 1):
        row = [rows[t].get(token, ZERO) for token in range(len(response.logits[t]))]
        phi_mean = sum((phi(q - gamma * v[t + 1], "chi2", alpha) for q in row), ZERO) / len(row)
        losses[t] = -phi_mean + v[t] - gamma * v[t + 1]
    return losses
