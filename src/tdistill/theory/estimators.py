"""Measure an objective's gradient exactly: every text of small token trees, its probability and its gradient.

The student is a table: one logit vector per prefix, and one value for the gauge ``learned``. Texts go through ``Steps`` and the
objectives that training uses, so population gradient, noise and optimum are those of the shipped code.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from tdistill.mdp.bellman import project
from tdistill.mdp.steps import Steps
from tdistill.mdp.tabular import top_p_set
from tdistill.objectives.contract import BoundObjective

VOCAB, DEPTH, EOS = 7, 4, 0
TOP_P = 0.8  # of A_p
NUCLEUS = 0.95  # that the teacher's texts are drawn from, so that some tokens lie off A_p
TEACHER_SCALE = 2.0  # standard deviation of the teacher's logits
LAST_LOGIT = {"cut_off": -30.0, "end": 30.0}  # of EOS at the last token: never, or always
FLATNESS = 0.8  # the student's logits are this share of the teacher's log-probs …
TOKEN_NOISE = 0.5  # … plus noise per token
STATE_NOISE = 2.0  # … plus a constant per state, which no probability shows: only the gauge ``none`` sees it

Last = Literal["cut_off", "end", "any"]


@dataclass(frozen=True)
class Forest:
    """Hold E trees. A state is a prefix that the teacher can write; ``tree`` is the number of its tree."""

    tree: Tensor  # [S]
    length: Tensor  # [S] tokens of the prefix
    visits: Tensor  # [S] probability that a text of its tree passes through
    teacher_logp: Tensor  # [S, V]
    written_logp: Tensor  # [S, V] of the nucleus that texts are drawn from
    successor: Tensor  # [S, V] −1 where the text is over, or the token never written
    ids: Tensor  # [S, K] A_p by descending probability
    legal: Tensor  # [S, K]

    @property
    def n_trees(self) -> int:
        """Return E, the number of trees."""
        return int(self.tree.max()) + 1


@dataclass(frozen=True)
class Texts:
    """Hold N texts of at most T tokens, and the weight of each: its probability, or its share of a sample."""

    state: Tensor  # [N, T]
    token: Tensor  # [N, T]
    mask: Tensor  # [N, T]
    weight: Tensor  # [N]; those of a tree sum to 1
    tree: Tensor  # [N]


@dataclass(frozen=True)
class TabularStudent:
    """Hold a table of logits and values, for every state or for every step of every text."""

    logits: Tensor  # [*B, V]
    value: Tensor  # [*B]


def grow(g: Generator, n_trees: int, *, vocab: int = VOCAB, depth: int = DEPTH, last: Last = "cut_off") -> tuple[Forest, Texts]:
    """Build trees with random teachers, and every text they can write: ended by EOS, or cut off after ``depth`` tokens.

    The last of ``depth`` tokens is never EOS (``cut_off``), always (``end``: no text is cut off), or as likely as any (``any``).
    """
    state, token = (torch.zeros(n_trees, 0, dtype=torch.long) for _ in range(2))
    logp, tree, first = torch.zeros(n_trees, dtype=torch.float64), torch.arange(n_trees), 0
    levels, texts = [], []
    for length in range(depth):
        is_last = length == depth - 1
        teacher = TEACHER_SCALE * torch.randn(len(tree), vocab, generator=g, dtype=torch.float64)
        if is_last and last in LAST_LOGIT:
            teacher[:, EOS] = LAST_LOGIT[last]
        teacher = teacher.log_softmax(-1)
        written = project(teacher, _nucleus(teacher, NUCLEUS))
        row, taken = (written > -torch.inf).nonzero(as_tuple=True)
        over = (taken == EOS) | is_last
        following = first + len(tree) + torch.arange(int((~over).sum()))
        successor = torch.full_like(written, -1, dtype=torch.long)
        successor[row[~over], taken[~over]] = following
        levels.append((tree, torch.full_like(tree, length), logp.exp(), teacher, written, successor))
        state = torch.cat([state, first + torch.arange(len(tree)).unsqueeze(-1)], 1)[row]
        token = torch.cat([token[row], taken.unsqueeze(-1)], 1)
        first, logp, tree = first + len(tree), logp[row] + written[row, taken], tree[row]
        texts.append((*(pad(x[over], (0, depth - length - 1), value=-1) for x in (state, token)), logp[over].exp(), tree[over]))
        state, token, logp, tree = (x[~over] for x in (state, token, logp, tree))
    owner, lengths, visits, teacher, written, successor = (torch.cat(x) for x in zip(*levels, strict=True))
    forest = Forest(owner, lengths, visits, teacher, written, successor, *_candidates(teacher))
    states, tokens, weight, tree = (torch.cat(x) for x in zip(*texts, strict=True))
    return forest, Texts(states.clamp(min=0), tokens.clamp(min=0), states >= 0, weight, tree)


def _nucleus(logp: Tensor, p: float) -> Tensor:
    return top_p_set(logp.exp(), torch.full(logp.shape[:-1], p, dtype=logp.dtype))


def _candidates(teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
    kept = _nucleus(teacher_logp, TOP_P)
    logp, ids = teacher_logp.masked_fill(~kept, -torch.inf).sort(-1, descending=True)
    width = int(kept.sum(-1).max())
    return ids[:, :width], logp[:, :width] > -torch.inf


def near_teacher(g: Generator, forest: Forest, token_noise: float = TOKEN_NOISE) -> TabularStudent:
    """Return a student flatter than its teacher, with noise; its values start at 0, as a new value head's do."""
    noise = token_noise * torch.randn(forest.teacher_logp.shape, generator=g, dtype=torch.float64)
    shift = STATE_NOISE * torch.randn(len(forest.tree), 1, generator=g, dtype=torch.float64)
    return TabularStudent(FLATNESS * forest.teacher_logp + noise + shift, torch.zeros(len(forest.tree), dtype=torch.float64))


@dataclass(frozen=True)
class Reading:
    """Present trees and texts as objectives see them: call it with the student's rows at every step ([N, T, V] and [N, T])."""

    forest: Forest
    texts: Texts
    ids: Tensor  # [N, T, K]
    fixed: dict[str, Any]  # the fields of ``Steps`` that no student changes

    def __call__(self, rows: TabularStudent, target: Steps | None = None) -> Steps:
        """Return the batch of all texts."""
        return Steps(
            q_t=rows.logits.gather(-1, self.ids),
            log_z_t=rows.logits.logsumexp(-1),
            max_t=rows.logits.amax(-1),
            taken_logit_t=rows.logits.gather(-1, self.texts.token.unsqueeze(-1)).squeeze(-1),
            value_t=rows.value,
            target=target,
            **self.fixed,
        )

    def rows(self, student: TabularStudent) -> TabularStudent:
        """Return the rows of the table that each text reads. A text visits a state at most once, so each of its steps has a row of its own."""
        return TabularStudent(student.logits[self.texts.state], student.value[self.texts.state])

    def per_tree(self, of_text: Tensor) -> Tensor:
        """Return [E]  Σ weight·x over the texts of each tree."""
        return sum_by(self.texts.tree, self.texts.weight * of_text)


def reading(forest: Forest, texts: Texts) -> Reading:
    """Return the reading of texts: look up the fields of ``Steps`` that do not depend on the student."""
    ids, legal = forest.ids[texts.state], forest.legal[texts.state] & texts.mask.unsqueeze(-1)
    teacher, token = forest.teacher_logp[texts.state], texts.token.unsqueeze(-1)
    is_taken = (ids == token) & legal
    fixed = {
        "teacher_logp_t": teacher.gather(-1, ids).masked_fill(~legal, -torch.inf),
        "legal_t": legal,
        "a_t": torch.where(is_taken.any(-1), is_taken.int().argmax(-1), -1),
        "mask_t": texts.mask,
        "terminal_t": texts.mask & (texts.token == EOS),
        "teacher_taken_logp_t": teacher.gather(-1, token).squeeze(-1),
        "behaviour_logp_t": torch.where(texts.mask, forest.written_logp[texts.state].gather(-1, token).squeeze(-1), 0.0),
        "expert_t": torch.ones_like(texts.mask),
        "vocab_size": teacher.shape[-1],
    }
    return Reading(forest, texts, ids, fixed)


def sum_by(index: Tensor, x: Tensor) -> Tensor:
    """Return [E]  Σ of the entries of each tree."""
    return torch.zeros(int(index.max()) + 1, dtype=x.dtype).index_add(0, index, x)


def text_loss(objective: BoundObjective, steps: Steps) -> Tensor:
    """Return [N]  Σ_t loss_t of each text."""
    return torch.where(steps.mask_t, objective(steps).loss_t, 0.0).sum(-1)


@dataclass(frozen=True)
class Gradient:
    """Hold the gradient of one text's loss for the table: its mean over texts, and its spread per tree."""

    mean: Tensor  # [S, V + 1]: logits, and the value last
    square: Tensor  # [E]  E‖g‖²
    tree: Tensor  # [S]

    def dot(self, other: "Gradient") -> Tensor:
        """Return [E]  ⟨E g, E h⟩."""
        return sum_by(self.tree, (self.mean * other.mean).sum(-1))

    @property
    def variance(self) -> Tensor:
        """Return [E]  tr Cov g of one text."""
        return (self.square - self.dot(self)).clamp(min=0.0)

    @property
    def noise(self) -> Tensor:
        """Return [E]  √(tr Cov g) / ‖E g‖ of one text; a batch of B texts has 1/√B of it."""
        return (self.variance / self.dot(self)).sqrt()

    def gap(self, of: "Gradient") -> Tensor:
        """Return [E]  ‖E h − E g‖² of another estimator h."""
        return sum_by(self.tree, (of.mean - self.mean).square().sum(-1))

    def bias(self, of: "Gradient") -> Tensor:
        """Return [E]  ‖E h − E g‖ / ‖E g‖."""
        return (self.gap(of) / self.dot(self)).sqrt()

    def break_even(self, of: "Gradient") -> Tensor:
        """Return [E]  (tr Cov g − tr Cov h) / ‖E h − E g‖²: with more texts in a batch, the biased h has the larger mean squared error."""
        return (self.variance - of.variance) / self.gap(of)

    def cosine(self, other: "Gradient") -> Tensor:
        """Return [E]  the cosine of the angle between two mean gradients."""
        return self.dot(other) / (self.dot(self) * other.dot(other)).sqrt()


def text_gradients(objective: BoundObjective, read: Reading, student: TabularStudent) -> Tensor:
    """Return [N, T, V + 1]  the gradient of each text's loss for the rows that it reads; semi-gradient if the objective's is."""
    rows = read.rows(student)
    leaves = (rows.logits.detach().requires_grad_(), rows.value.detach().requires_grad_())
    # Rows belong to one text each, so the gradient of the sum holds every text's own.
    loss = text_loss(objective, read(TabularStudent(*leaves))).sum()
    logits, value = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return torch.cat([logits, value.unsqueeze(-1)], -1)


def gradient(objective: BoundObjective, read: Reading, student: TabularStudent) -> Gradient:
    """Return the gradient's mean and spread over the texts: with every text and its probability, exactly the population's."""
    each = text_gradients(objective, read, student)
    weighted = (read.texts.weight[:, None, None] * each).flatten(0, 1)
    mean = torch.zeros(len(read.forest.tree), each.shape[-1], dtype=each.dtype).index_add(0, read.texts.state.flatten(), weighted)
    return Gradient(mean, read.per_tree(each.square().sum((-2, -1))), read.forest.tree)
