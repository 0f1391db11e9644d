"""Say which artefacts each stage before the report makes."""

from collections.abc import Callable, Sequence

from tdistill.experiment import models, rollouts, students
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.evaluation import evaluations
from tdistill.experiment.experiment import Experiment

# Stage → its artefacts, in the order in which they are made. The graph runs them, and the report adds up what they took.
ARTEFACTS: dict[str, Callable[[Experiment], Sequence[Artefact]]] = {
    "models": lambda e: [models.teacher(e), models.start(e)],
    "rollout": lambda e: list(rollouts.rollouts(e).values()),
    "sft": lambda e: [s.artefact for s in [students.sft(e)] if s is not None],
    "train": lambda e: [s.artefact for s in students.students(e)],
    "evaluate": evaluations,
}
