"""Write and read the rows of a bench: one for every method and seed, with the settings that it was trained by and every prompt's scores."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.provenance import provenance
from tdistill.experiment.students import Trained, divergence
from tdistill.objectives import bind
from tdistill.recipe.schema import MethodConfig, Recipe, ValueConfig
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import read_jsonl
from tdistill.statistics.estimate import estimate
from tdistill.training.checks import unread_value_settings
from tdistill.training.log import read_history

START = "sft_fingerprint"  # of the student that a row's training started from
DIGITS = 4  # of a prompt's score
OWN = ("arguments", "on_policy", "value")  # of a method: columns of its row
VERSIONS = ("git_commit", "machine", "torch", "transformers", "tdistill")
# Of a recipe, what no row is compared by: where things lie and what they are called, and what a row says of its own method.
PLACES: dict[str, Any] = {
    "title": True,
    "output_dir": True,
    "data": {"train", "valid", "test"},
    "teacher": {"teacher_model_name_or_path"},
    "student": {"student_model_name_or_path"},
    "train": {"objective", "baselines", "seeds", "monitor", *OWN},
}

Scores = Mapping[str, Mapping[str, float]]  # metric → prompt → value


@dataclass(frozen=True)
class Unit:
    """Name one student: a method, a seed, and the learning rate if several are tried."""

    name: str
    seed: int
    rate: float | None = None

    @property
    def label(self) -> str:
        """Return the method's name in rows and tables."""
        return self.name if self.rate is None else f"{self.name}@{self.rate:g}"

    @property
    def key(self) -> tuple[str, int]:
        """Return what tells rows apart."""
        return self.label, self.seed


def kept_rows(path: Path, units: Mapping[Unit, Experiment], split: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rows of a file by method and seed; none if there is no file.

    Args:
        path: the file.
        units: the students that are asked for, each with its experiment.
        split: the prompts that are asked for.

    Raises:
        ConfigError: a row is of another split or of a recipe with other settings, or a student of the same name was trained by others.
    """
    rows = read_jsonl(path) if path.exists() else []
    recipe = next(iter(units.values())).recipe.model_dump(exclude=PLACES)
    for row in rows:
        if row["split"] != split or Recipe.model_validate(row["recipe"]).model_dump(exclude=PLACES) != recipe:
            raise ConfigError(f"{path} holds rows of the {row['split']} prompts and of a recipe with other settings: give --rows another file.")
    kept = {(row["method"], row["seed"]): row for row in rows}
    for unit, experiment in units.items():
        row, method = kept.get(unit.key), experiment.recipe.train.methods()[unit.name]
        if row is not None and not _trained_by(row, method):
            raise ConfigError(
                f"{unit.label}-{unit.seed} of {path} was trained by other settings ({row['objective']}): remove its row, or rename the method."
            )
    return kept


def _trained_by(row: Mapping[str, Any], method: MethodConfig) -> bool:
    """Tell whether a method has the objective of a row and its settings, those that the objective reads. Later settings have their defaults."""
    bound = bind(method.objective)
    columns = {**dict.fromkeys(OWN, True), "value": set(ValueConfig.model_fields) - set(unread_value_settings(bound.needs))}
    own = MethodConfig(objective=method.objective, **{key: row[key] for key in OWN})
    return row["objective"] == bound.describe() and own.model_dump(include=columns) == method.model_dump(include=columns)


def row_of(experiment: Experiment, student: Trained, unit: Unit, read: Callable[[], Scores]) -> dict[str, Any]:
    """Return the row of a student: how and where it was trained, and the scores that ``read`` returns. One that diverged has no scores."""
    artefact = student.artefact
    row: dict[str, Any] = {
        "system": f"{unit.label}-{unit.seed}",
        "method": unit.label,
        "seed": unit.seed,
        "student": artefact.key,
        "objective": bind(student.method.objective).describe(),
        **student.method.model_dump(include=set(OWN)),
        "recipe": experiment.recipe.model_dump(exclude={"train": {"baselines", "seeds"}}),
    }
    diverged = divergence(artefact.directory)
    if diverged is not None:
        made = provenance(experiment.recipe)
        return row | {"diverged": diverged, "scores": {}} | {key: made[key] for key in VERSIONS}
    manifest = experiment.manifest(artefact)
    assert manifest is not None, f"{artefact.directory} is not complete"
    scores = read()
    return row | {
        "best_step": read_history(artefact.directory)["best_step"],
        "training_seconds": manifest.seconds,
        "metrics": {metric: asdict(estimate(list(values.values()))) for metric, values in scores.items() if values},
        "scores": rounded(scores),
        **{key: manifest.provenance[key] for key in VERSIONS},
    }


def rounded(scores: Scores) -> dict[str, dict[str, float]]:
    """Return scores with the digits of a row."""
    return {metric: {prompt: float(f"{x:.{DIGITS}g}") for prompt, x in values.items()} for metric, values in scores.items()}
