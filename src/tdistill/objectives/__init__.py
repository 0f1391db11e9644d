"""The algorithms. To add one: a file here, a test, a page in docs/algorithms, one line in ``OBJECTIVES``."""

from tdistill.objectives import forward_kl, iq_learn, nll, reverse_kl
from tdistill.objectives.bind import bind
from tdistill.objectives.contract import BoundObjective, Objective, ObjectiveOutput

OBJECTIVES: dict[str, Objective] = {
    "nll": nll.OBJECTIVE,
    "forward_kl": forward_kl.OBJECTIVE,
    "reverse_kl": reverse_kl.OBJECTIVE,
    "iq_learn": iq_learn.OBJECTIVE,
    "bellman_distill": iq_learn.OBJECTIVE,
}

__all__ = ["OBJECTIVES", "BoundObjective", "Objective", "ObjectiveOutput", "bind"]
