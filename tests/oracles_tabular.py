"""Slow truth for tabular MDPs: plain Python loops on floats, written from the equations. Nothing here imports tdistill.

An MDP is reward[s][a] and transition[s][a][s']; what a row of the latter lacks to 1 ends the episode, with value 0.
"""

import math
from collections.abc import Callable, Sequence

Table = list[list[float]]
Sets = list[list[int]]


def lse(xs: Sequence[float]) -> float:
    top = max(xs)
    return top + math.log(math.fsum(math.exp(x - top) for x in xs))


def top_p(prob: Sequence[float], p: float, cap: int | None = None) -> list[int]:
    """Actions by descending probability while the mass before them is < p, at least one, at most ``cap``."""
    kept: list[int] = []
    for a in sorted(range(len(prob)), key=lambda a: -prob[a]):
        if kept and p < 1.0 and math.fsum(prob[b] for b in kept) >= p:
            break
        kept.append(a)
    return kept[:cap]


def fewest_with_tail_loss(prob: Sequence[float], epsilon: float) -> list[int]:
    """The shortest prefix of the actions by descending probability with −log(kept mass) ≤ ε."""
    order = sorted(range(len(prob)), key=lambda a: -prob[a])
    for n in range(1, len(order)):
        if -math.log(math.fsum(prob[a] for a in order[:n])) <= epsilon:
            return order[:n]
    return order


def fixed_point(reward: Table, transition: list[Table], gamma: float, value: Callable[[int, list[float]], float]) -> Table:
    """Iterate Q(s,a) ← r(s,a) + γ Σ_s' P(s'|s,a) value(s', Q(s',·)) until nothing moves by more than 1e-13 of the largest |Q|."""
    q = [list(row) for row in reward]
    while True:
        v = [value(s, row) for s, row in enumerate(q)]
        new = [
            [r + gamma * math.fsum(p * v[t] for t, p in enumerate(transition[s][a])) for a, r in enumerate(row)] for s, row in enumerate(reward)
        ]
        moved = max(abs(x - y) for a, b in zip(new, q, strict=True) for x, y in zip(a, b, strict=True))
        q = new
        if moved <= 1e-13 * max(1.0, max(abs(x) for row in q for x in row)):
            return q


def soft_optimal(reward: Table, transition: list[Table], gamma: float, sets: Sets) -> Table:
    """Value iteration with V(s) = log Σ_{a in sets[s]} exp Q(s,a)."""
    return fixed_point(reward, transition, gamma, lambda s, row: lse([row[a] for a in sets[s]]))


def soft_policy(reward: Table, transition: list[Table], gamma: float, policy: list[dict[int, float]]) -> Table:
    """Policy evaluation with V(s) = Σ_a π(a|s) (Q(s,a) − log π(a|s)), where 0·log 0 = 0."""
    return fixed_point(reward, transition, gamma, lambda s, row: math.fsum(p * (row[a] - math.log(p)) for a, p in policy[s].items() if p))


def text_value(successor: list[list[int]], reward: Table, gamma: float, sets: Sets, state: int = 0) -> float:
    """V_p of a tree of texts by enumeration: log Σ over texts when γ = 1, and by recursion from the leaves for every γ."""
    if state < 0:
        return 0.0
    return lse([reward[state][a] + gamma * text_value(successor, reward, gamma, sets, successor[state][a]) for a in sets[state]])


def texts(successor: list[list[int]], sets: Sets, state: int = 0) -> list[list[tuple[int, int]]]:
    """Every text from ``state`` to its end, as (state, token) pairs."""
    if state < 0:
        return [[]]
    return [[(state, a), *rest] for a in sets[state] for rest in texts(successor, sets, successor[state][a])]


def bandit_minimiser(expert: Sequence[float], alpha: float) -> list[float]:
    """Where −Σ e(a)(Q_a − Q_a²/4α) + log Σ exp Q is stationary: exp(Q_a − V) = e(a)(1 − Q_a/2α), Σ_a exp(Q_a − V) = 1.

    For a given V each Q_a is the root of a monotone equation, and Σ_a exp(Q_a − V) falls in V: two nested bisections.
    """

    def q_of(e: float, v: float) -> float:
        return bisect(lambda q: math.exp(q - v) - e * (1.0 - q / (2.0 * alpha)), v - 800.0, v + 5.0)

    v = bisect(lambda v: 1.0 - math.fsum(math.exp(q_of(e, v) - v) for e in expert), -50.0, 50.0)
    return [math.exp(q_of(e, v) - v) for e in expert]


def bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return 0.5 * (low + high)


def road_regret(start: Sequence[float], successor: list[list[int]], student: Table, teacher: Table, horizon: int) -> float:
    """KL(student‖teacher) of whole texts of ``horizon`` tokens from log-probs, by walking every text with student probability."""

    def walk(state: int, left: int, log_ratio: float, prob: float) -> float:
        if left == 0 or prob == 0.0:
            return prob * log_ratio
        return math.fsum(
            walk(successor[state][a], left - 1, log_ratio + student[state][a] - teacher[state][a], prob * math.exp(student[state][a]))
            for a in range(len(student[state]))
        )

    return math.fsum(p * walk(s, horizon, 0.0, 1.0) for s, p in enumerate(start) if p > 0)
