"""List the stages, and make what a stage lacks."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tdistill.experiment import report, sparsity, students
from tdistill.experiment.artefact import Artefact, build
from tdistill.experiment.evaluation import evaluation
from tdistill.experiment.experiment import EVALUATION, Experiment
from tdistill.experiment.kept import kept_of_artefact, kept_of_run
from tdistill.experiment.latest import link_latest, student_names
from tdistill.experiment.provenance import provenance
from tdistill.experiment.rollouts import check_inputs, rollouts
from tdistill.experiment.stages import ARTEFACTS
from tdistill.experiment.workers import make_side_by_side
from tdistill.recipe.schema import Recipe
from tdistill.runtime.disk import disk_errors
from tdistill.runtime.errors import ConfigError, NonFiniteLossError
from tdistill.runtime.processes import process_count
from tdistill.runtime.progress import say
from tdistill.runtime.stops import keeping


@dataclass(frozen=True)
class Stage:
    """Describe a stage: the stages before it, its artefacts, and the checks before the first of them is made."""

    after: tuple[str, ...]
    artefacts: Callable[[Experiment], Sequence[Artefact]]
    check: Callable[[Experiment], None] = lambda _: None
    named: Callable[[Experiment], Mapping[str, Artefact]] = lambda _: {}  # what people look for by name
    parallel: bool = False  # several processes of a launcher may share it; the others run in one
    on_demand: bool = False  # not a part of `tdistill run`


def _named_students(experiment: Experiment) -> dict[str, Artefact]:
    return {name: student.artefact for name, student in student_names(experiment).items()}


def _named_rollouts(experiment: Experiment) -> dict[str, Artefact]:
    return {f"rollouts-{name}": artefact for name, artefact in rollouts(experiment).items()}


STAGES: dict[str, Stage] = {
    "models": Stage((), ARTEFACTS["models"]),
    "rollout": Stage(("models",), ARTEFACTS["rollout"], check_inputs, named=_named_rollouts),
    "sft": Stage(("models", "rollout"), ARTEFACTS["sft"], parallel=True),
    "train": Stage(("models", "rollout", "sft"), ARTEFACTS["train"], named=_named_students, parallel=True),
    "evaluate": Stage(("models", "rollout", "sft", "train"), ARTEFACTS["evaluate"], named=lambda e: {EVALUATION: evaluation(e)}),
    "report": Stage(
        ("models", "rollout", "sft", "train", "evaluate"),
        lambda e: [report.report(e)],
        named=lambda e: {"report": report.report(e), EVALUATION: evaluation(e)},
    ),
    "sparsity": Stage(("models", "rollout"), lambda e: [sparsity.sparsity(e)], on_demand=True),
}
MOST_LINES = 6  # of more artefacts, only the bars are shown
# What `tdistill run` makes, in order.
WAY = tuple(name for name, stage in STAGES.items() if not stage.on_demand)


def is_complete(experiment: Experiment, name: str) -> bool:
    """Return whether a stage and all stages before it are complete. The stages before are looked at first: they say what later keys are.

    Raises:
        OutputError: a file of a complete artefact is damaged.
    """
    return all(map(partial(is_complete, experiment), STAGES[name].after)) and not missing(experiment, name)


def missing(experiment: Experiment, name: str) -> list[Artefact]:
    """Return the artefacts of a stage that are not complete, each once. The stages before it are complete."""
    found = {a.directory: a for a in STAGES[name].artefacts(experiment) if not experiment.is_complete(a)}
    return list(found.values())


def execute(experiment: Experiment, name: str, workers: int = 1) -> None:
    """Make all artefacts of a stage that are not complete.

    Args:
        experiment: what was asked for.
        name: a key of ``STAGES``.
        workers: processes that train students side by side.

    Raises:
        ConfigError: a stage before it is not complete.
        NonFiniteLossError: training of at least one student diverged; the others are made.
        OutputError: the disk is full, can't be written, or the directory was deleted in between.
    """
    with disk_errors(experiment.root), keeping(partial(kept_of_run, experiment.root)):
        _check_before(experiment, name)
        todo = missing(experiment, name)
        everything = STAGES[name].artefacts(experiment)
        if not everything:  # a recipe without an `sft` section
            return
        if not todo:
            say(f"{name}: complete, skipped ({_places(everything)})")
        else:
            _check_processes(name, workers)
            STAGES[name].check(experiment)
            if len(todo) > 1:
                say(f"{name}: {len(todo)} of {len(everything)} to make in {experiment.root}")
            make_all(experiment, todo, workers if STAGES[name].parallel else 1)
        for artefact in everything:
            artefact.after(artefact.directory)
        link_latest(experiment, STAGES[name].named(experiment))


def make_all(experiment: Experiment, artefacts: Sequence[Artefact], workers: int = 1) -> None:
    """Make artefacts whose inputs are complete. One that diverges does not keep the others from being made.

    Raises:
        NonFiniteLossError: at least one diverged.
    """
    if workers > 1 and len(artefacts) > 1:
        make_side_by_side(experiment, artefacts, workers, make_student)
        return
    diverged = []
    for number, artefact in enumerate(artefacts, 1):
        if len(artefacts) <= MOST_LINES:
            count = f" ({number} of {len(artefacts)})" if len(artefacts) > 1 else ""
            say(f"{artefact.title}{count} → {artefact.directory}")
        try:
            make(experiment, artefact)
        except NonFiniteLossError as error:
            diverged.append(f"{artefact.title}: {error}")
            if artefact is not artefacts[-1]:
                say(diverged[-1])
    if diverged:
        raise NonFiniteLossError("\n".join(diverged))


def make(experiment: Experiment, artefact: Artefact) -> None:
    """Make one artefact unless it is complete."""
    if not experiment.is_complete(artefact):
        build(artefact, provenance(experiment.recipe), _watching(experiment, artefact))


def make_student(recipe: Recipe, directory: Path) -> None:
    """Make the student that lies in ``directory``, in a process of its own. Its inputs are complete."""
    experiment = Experiment(recipe)
    make(experiment, next(s.artefact for s in students.students(experiment) if s.artefact.directory == directory))


@contextmanager
def _watching(experiment: Experiment, artefact: Artefact) -> Iterator[None]:
    with disk_errors(artefact.directory), keeping(partial(kept_of_artefact, artefact, experiment.root)):
        yield


def _check_before(experiment: Experiment, name: str) -> None:
    for before in STAGES[name].after:
        if missing(experiment, before):
            raise ConfigError(
                f"`{name}` reads what `{before}` makes, which is not complete: "
                f"`tdistill {_command(before)} RECIPE` first, or `tdistill run RECIPE`."
            )


def _check_processes(name: str, workers: int) -> None:
    if process_count() > 1 and workers > 1:
        raise ConfigError(
            f"--workers {workers} trains every student in a process of its own, and this is one of {process_count()} processes that train each "
            "student together: leave --workers out, or start it without `accelerate launch`."
        )
    if process_count() > 1 and not STAGES[name].parallel:
        raise ConfigError(
            f"`{name}` runs in one process, and this is one of {process_count()}: complete it without `accelerate launch` first "
            f"(`tdistill {_command(name)} RECIPE`), then launch `tdistill train RECIPE`."
        )


def _places(artefacts: Sequence[Artefact]) -> str:
    places = {a.directory: a for a in artefacts}
    if len(places) == 1:
        return str(artefacts[0].directory)
    counts = Counter(artefact.kind for artefact in places.values())
    return f"{artefacts[0].root}: " + ", ".join(f"{count} in {kind}" for kind, count in counts.items())


def _command(name: str) -> str:
    return "rollout" if name == "models" else name
