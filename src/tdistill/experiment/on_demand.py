"""Make measurements that `tdistill run` does not make: other temperatures, named tasks, lm-eval."""

from collections.abc import Sequence
from functools import partial

from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.graph import is_complete, make_all
from tdistill.experiment.kept import kept_of_run
from tdistill.experiment.systems import release
from tdistill.runtime.disk import disk_errors
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.processes import process_count
from tdistill.runtime.stops import keeping


def require_students(experiment: Experiment, option: str) -> None:
    """Check that the students are trained and that this is the only process.

    Raises:
        ConfigError: they are not, or it is not.
        OutputError: a file of a complete artefact is damaged.
    """
    if process_count() > 1:
        raise ConfigError(f"`evaluate {option}` runs in one process, and this is one of {process_count()}: start it without a launcher.")
    for stage in ("models", "train"):
        if not is_complete(experiment, stage):
            raise ConfigError(f"`evaluate {option}` reads what `{stage}` makes, which is not complete: `tdistill run RECIPE` first.")


def make_missing(experiment: Experiment, artefacts: Sequence[Artefact]) -> None:
    """Make the measurements that are not complete, and free the models afterwards."""
    with disk_errors(experiment.root), keeping(partial(kept_of_run, experiment.root)):
        todo = {a.directory: a for a in artefacts if not experiment.is_complete(a)}
        make_all(experiment, list(todo.values()))
        release(experiment)
