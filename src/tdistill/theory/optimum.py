"""Find the optimum of an objective on a token tree: the minimum of its exact population loss over the student's table."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tdistill.mdp.bellman import project, soft_value
from tdistill.objectives.contract import BoundObjective
from tdistill.objectives.parts.divergence import kl
from tdistill.theory.estimators import Forest, Reading, TabularStudent, sum_by, text_loss

GRADIENT_TOLERANCE = 1e-6  # of a minimum: per state, given that it is visited, times the root of its visits
NEAR_TOLERANCE = 1e-3  # nats per text that the last chunk of steps may still have gained near one
CHUNK = 50  # steps of L-BFGS between looks at what they gain
HISTORY = 60

Found = Literal["minimum", "near", "nothing"]


@dataclass(frozen=True)
class Optimum:
    """Hold the student found, and how good it is: a ``minimum``, ``near`` one (a kink or a flat valley), or ``nothing`` within the steps."""

    student: TabularStudent
    found: Found


def minimise(objective: BoundObjective, read: Reading, start: TabularStudent, most_steps: int, frozen: TabularStudent | None = None) -> Optimum:
    """Minimise E[loss of a text] by L-BFGS in float64 from ``start``, summed over trees, which do not interact.

    Each state's row is scaled by the root of its visits, so that seldom visited states converge as others do. ``frozen`` is the
    target network.
    """
    scale = read.forest.visits.sqrt()
    point = [(start.logits * scale.unsqueeze(-1)).requires_grad_(), (start.value * scale).requires_grad_()]
    target = None if frozen is None else read(read.rows(frozen))

    def table() -> TabularStudent:
        return TabularStudent(point[0] / scale.unsqueeze(-1), point[1] / scale)

    def loss() -> Tensor:
        total = read.per_tree(text_loss(objective, read(read.rows(table()), target))).sum()
        gradients = torch.autograd.grad(total, point, allow_unused=True, materialize_grads=True)
        for x, g in zip(point, gradients, strict=True):
            x.grad = g
        return total.detach()

    before = loss()
    gained = torch.full_like(before, torch.inf)
    chunk, left = min(CHUNK, most_steps), most_steps
    optimiser = _lbfgs(point, chunk)
    while left > 0 and _slope(point) > GRADIENT_TOLERANCE:
        done = _steps(optimiser)
        optimiser.step(loss)
        after = loss()
        before, gained = after, before - after
        if _steps(optimiser) - done < chunk:
            # The line search found no descent along what it remembers, as at the kinks of ``max`` and ``max_support``: forget it.
            optimiser = _lbfgs(point, chunk)
        left -= chunk
    near = bool(gained <= NEAR_TOLERANCE * read.forest.n_trees)
    with torch.no_grad():
        return Optimum(table(), "minimum" if _slope(point) <= GRADIENT_TOLERANCE else "near" if near else "nothing")


def _slope(point: list[Tensor]) -> float:
    return max(float(x.grad.abs().max()) for x in point if x.grad is not None)


def _lbfgs(point: list[Tensor], chunk: int) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        point,
        max_iter=chunk,
        max_eval=2 * chunk,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
    )


def _steps(optimiser: torch.optim.LBFGS) -> int:
    return sum(int(state.get("n_iter", 0)) for state in optimiser.state.values())


def fit(objective: BoundObjective, read: Reading, start: TabularStudent, most_steps: int) -> Optimum:
    """Find the optimum of an objective whose target carries no gradient: minimise, take the result as the target, and repeat.

    A target depends on the levels below its state, so one round for each level of the tree is enough.
    """
    optimum = Optimum(start, "nothing")
    for _ in range(read.texts.state.shape[1]):
        optimum = minimise(objective, read, optimum.student, most_steps, frozen=optimum.student)
    return optimum


def learnt(forest: Forest) -> Tensor:
    """Return [S] the visits of states whose step is never a cut-off, normalised over each tree. Only there can a policy be learnt."""
    visits = torch.where(forest.length < forest.length.max(), forest.visits, 0.0)
    return visits / sum_by(forest.tree, visits)[forest.tree]


def policy_kl(forest: Forest, logits: Tensor) -> Tensor:
    """Return [E]  E_s KL(proj_p π* ‖ proj_p π), nats, over the states of ``learnt``."""
    teacher, student = (project(x.gather(-1, forest.ids), forest.legal) for x in (forest.teacher_logp, logits))
    return sum_by(forest.tree, learnt(forest) * kl(teacher, student, forest.legal))


def mass(forest: Forest, logits: Tensor) -> Tensor:
    """Return [E]  E_s Σ_{A_p} π(a|s) over the same states."""
    held = soft_value(logits.log_softmax(-1).gather(-1, forest.ids), forest.legal).exp()
    return sum_by(forest.tree, learnt(forest) * held)
