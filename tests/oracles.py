"""Slow truth: one loop per recursion and loss, on float64 scalars and whole vocabulary rows, written from the equations.

Nothing here imports tdistill. Student logits are torch scalars, so that autograd of an oracle gives the oracle's gradient;
the teacher is a list of Python floats. A token is its index in the vocabulary, a candidate set a list of tokens.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """One response of T tokens: T rows of student logits and teacher log-probs over V, and how it ended."""

    logits: list[list[Tensor]]
    teacher: list[list[float]]
    tokens: list[int]
    finished: bool  # the last token is EOS; False: cut off by length
    candidates: list[list[int]]
    value: list[Tensor]
    action_value: list[list[Tensor]] = field(default_factory=list)  # of every token
    expert: bool = True  # written by the teacher, not by the student
    behaviour: list[float] = field(default_factory=list)  # log-prob of each token under the policy that drew it, or NaN

    def __len__(self) -> int:
        return len(self.tokens)


def top_p_set(logp: list[float], p: float, cap: int | None = None) -> list[int]:
    """Tokens by descending probability, kept while the mass before them is < p; never fewer than one."""
    order = sorted((i for i, x in enumerate(logp) if x > -math.inf), key=lambda i: -logp[i])
    kept: list[int] = []
    before: list[float] = []
    for token in order:
        if kept and p < 1.0 and math.fsum(before) >= p:
            break
        kept.append(token)
        before.append(math.exp(logp[token]))
    return kept if cap is None else kept[:cap]


def log_sum_exp(xs: list[Tensor]) -> Tensor:
    top = max(x.item() for x in xs)
    total = torch.zeros((), dtype=torch.float64)
    for x in xs:
        total = total + torch.exp(x - top)
    return top + torch.log(total)


def log_softmax(xs: list[Tensor], temperature: float = 1.0) -> list[Tensor]:
    """With xs on a candidate set: the log of the projection proj_p π."""
    scaled = [x / temperature for x in xs]
    z = log_sum_exp(scaled)
    return [x - z for x in scaled]


def scalars(xs: list[float]) -> list[Tensor]:
    return [torch.tensor(x, dtype=torch.float64) for x in xs]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """Σ p (log p − log q) of two lists of log-probs, 0·log 0 = 0."""
    total = torch.zeros((), dtype=torch.float64)
    for log_p, log_q in zip(p, q, strict=True):
        if log_p.item() > -math.inf:
            total = total + torch.exp(log_p) * (log_p - log_q)
    return total


def teacher_and_student(response: Response, t: int, support: str, temperature: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs of both on A_p and a bucket for the rest (tail), projected (proj), or on the whole vocabulary (dense).

    ``uniform``: likewise, with the teacher's mass outside A_p even there.
    """
    student, teacher = response.logits[t], scalars(response.teacher[t])
    inside = response.candidates[t]
    if support == "uniform":
        outside = [a for a in range(len(student)) if a not in inside]
        left = log_sum_exp([log_softmax(teacher)[a] for a in outside]) - math.log(len(outside)) if outside else None
        teacher = [log_softmax(teacher)[a] if a in inside else left for a in range(len(student))]
    if support in ("uniform", "dense"):
        return log_softmax(teacher, temperature), log_softmax(student, temperature)
    if support == "proj":
        return log_softmax([teacher[a] for a in inside], temperature), log_softmax([student[a] for a in inside], temperature)
    outside = [a for a in range(len(student)) if a not in inside]
    rows = []
    for row in (log_softmax(teacher), log_softmax(student)):
        bucket = [log_sum_exp([row[a] for a in outside])] if outside else []
        rows.append([row[a] for a in inside] + bucket)
    return rows[0], rows[1]


def forward_kl(response: Response, *, support: str = "tail", loss_temperature: float = 1.0) -> list[Tensor]:
    """KL(teacher ‖ student) at each step."""
    pairs = [teacher_and_student(response, t, support, loss_temperature) for t in range(len(response))]
    return [kl(p, q) for p, q in pairs]


def reverse_kl(response: Response, *, support: str = "tail", loss_temperature: float = 1.0) -> list[Tensor]:
    """KL(student ‖ teacher) at each step."""
    pairs = [teacher_and_student(response, t, support, loss_temperature) for t in range(len(response))]
    return [kl(q, p) for p, q in pairs]


def taken_nll(response: Response) -> list[Tensor]:
    """−log π(a_t|s_t) over the whole vocabulary."""
    return [-log_softmax(row)[token] for row, token in zip(response.logits, response.tokens, strict=True)]


def nll(response: Response) -> list[Tensor]:
    """``taken_nll`` of what the expert wrote; nothing of what the student did."""
    return [cost if response.expert else 0.0 * cost for cost in taken_nll(response)]


def proj_nll(response: Response, t: int) -> Tensor:
    """−log proj_p π(a_t|s_t), for a token on A_p."""
    inside = response.candidates[t]
    return -log_softmax([response.logits[t][a] for a in inside])[inside.index(response.tokens[t])]


def proj_cross_entropy(response: Response, t: int) -> Tensor:
    """−Σ_{A_p} proj_p π*(a) log proj_p π(a)."""
    p, q = teacher_and_student(response, t, "proj")
    return -sum((torch.exp(log_p) * log_q for log_p, log_q in zip(p, q, strict=True)), torch.zeros(()))


def gauge_shift(response: Response, t: int, gauge: str) -> Tensor:
    """c(s_t) in Q(s,a) = ℓ(s,a) − c(s)."""
    row = response.logits[t]
    inside = [row[a] for a in response.candidates[t]]
    if gauge == "none":
        return torch.zeros((), dtype=torch.float64)
    if gauge == "max":
        return max(row, key=lambda x: x.item())
    if gauge == "max_support":
        return max(inside, key=lambda x: x.item())
    if gauge == "mean_support":
        return sum(inside[1:], inside[0]) / len(inside)
    if gauge == "lse":
        return log_sum_exp(row)
    if gauge == "learned":  # Q = log proj_p π + v
        return log_sum_exp(inside) - response.value[t]
    raise ValueError(gauge)


def anchor_term(response: Response, t: int, anchor: str) -> Tensor:
    if anchor == "none":
        return torch.zeros((), dtype=torch.float64)
    if anchor == "nll":
        return nll(response)[t]
    bernoullis = []
    for row in (scalars(response.teacher[t]), response.logits[t]):
        logp = log_softmax(row)
        outside = [a for a in range(len(row)) if a not in response.candidates[t]]
        if not outside:  # both put everything on A_p
            return torch.zeros((), dtype=torch.float64)
        bernoullis.append([log_sum_exp([logp[a] for a in side]) for side in (response.candidates[t], outside)])
    return kl(*bernoullis)
