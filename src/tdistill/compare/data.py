"""Hold what is compared as plain values: students, and methods. A method is a group of students that differ only by their seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tdistill.evaluation.metrics import TEACHER
from tdistill.statistics.equal_entropy import TemperatureCurve, temperature_curve
from tdistill.statistics.pooling import ScoresBySeed

METRICS = ("rouge_l", "teacher_nll", "forward_kl", "reverse_kl", "distinct_2")
REFERENCES = (TEACHER, "start", "sft")  # evaluated by every run, and not trained by its train stage
COSTS = ("seconds", "tokens", "steps")

Scores = dict[str, dict[str, float]]  # metric → prompt → value


@dataclass(frozen=True)
class TrainingCost:
    """Hold what training cost up to a given step; NaN where it was not recorded."""

    seconds: float = math.nan
    tokens: float = math.nan
    steps: float = math.nan


@dataclass(frozen=True)
class MeasuredStudent:
    """Hold one model of one run, trained with one seed."""

    name: str
    objective: str
    seed: int
    group: str  # equal for students that differ only by their seeds
    settings: dict[str, Any]  # all that shapes it beside seeds, the objective included
    scores: Scores
    run: Path
    measured: tuple[str, ...]  # KIND/KEY of the student, of its answers and of its divergences
    machine: str
    best: TrainingCost = TrainingCost()  # until the checkpoint that was saved
    total: TrainingCost = TrainingCost()
    validations: list[dict[str, float]] = field(default_factory=list)  # with ``seconds``, in order
    by_temperature: dict[float, Scores] = field(default_factory=dict)  # decoding temperature → scores

    @property
    def is_reference(self) -> bool:
        """Tell whether the train stage did not make this model."""
        return self.name in REFERENCES

    @cached_property
    def method(self) -> str:
        """Return a key that is equal for students that differ only by their seed."""
        return f"{self.name} {self.group}"


@dataclass(frozen=True)
class PooledMethod:
    """Hold the students that differ only by their seed, under a label that no other method has."""

    label: str
    students: list[MeasuredStudent]  # by seed

    @property
    def first(self) -> MeasuredStudent:
        """Return the first student; all students share its name, objective and settings."""
        return self.students[0]

    @property
    def seeds(self) -> list[int]:
        """Return the seeds in ascending order."""
        return [s.seed for s in self.students]

    @property
    def curve(self) -> TemperatureCurve:
        """Return the scores by decoding temperature, for the temperatures at which all seeds were measured."""
        return temperature_curve({s.seed: s.by_temperature for s in self.students})

    def cost(self, which: str, key: str) -> float:
        """Return the mean over seeds of the cost ``key``, up to the ``best`` checkpoint or in ``total``; NaN unless all seeds have it."""
        return sum(getattr(getattr(s, which), key) for s in self.students) / len(self.students)


def methods(students: Sequence[MeasuredStudent]) -> list[PooledMethod]:
    """Group students by method, in the order in which the methods appear."""
    groups: dict[str, list[MeasuredStudent]] = {}
    for student in students:
        groups.setdefault(student.method, []).append(student)
    found = [sorted(group, key=lambda s: s.seed) for group in groups.values()]
    return [PooledMethod(label, group) for label, group in zip(labels([group[0] for group in found]), found, strict=True)]


def labels(students: Sequence[MeasuredStudent]) -> list[str]:
    """Return a label for each student. Equal names get the fewest settings that tell them apart, the objective's first."""
    out = [s.name for s in students]
    for name in dict.fromkeys(out):
        places = [i for i, s in enumerate(students) if s.name == name]
        if len(places) > 1:
            for i, told in zip(places, _told_apart([_flat(students[i].settings) for i in places]), strict=True):
                out[i] = f"{name} ({told})" if told else name
    return out


def _told_apart(settings: Sequence[dict[str, Any]]) -> list[str]:
    keys = sorted({k for s in settings for k in s}, key=lambda k: (not k.endswith("objective.name"), not k.startswith("objective"), k))
    chosen: list[str] = []
    for key in keys:
        before, after = (len({tuple(str(s.get(k)) for k in ks) for s in settings}) for ks in (chosen, [*chosen, key]))
        if after > before:
            chosen.append(key)
        if after == len(settings):
            break
    return [", ".join(_told(key, s[key]) for key in chosen if s.get(key) is not None) for s in settings]


def _told(key: str, value: Any) -> str:
    last = key.rsplit(".", 1)[-1]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return shown if last == "name" else f"{last} {shown}"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {k: v for key, inner in items for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def by_seed(method: PooledMethod, metric: str) -> ScoresBySeed:
    """Return one metric of a method as seed → scores."""
    return {s.seed: s.scores[metric] for s in method.students if s.scores.get(metric)}
