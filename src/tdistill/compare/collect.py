"""Read the students out of the output directories of ``tdistill run``. Only complete evaluations are read, and neither models nor prompts
are needed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tdistill.compare.data import REFERENCES, MeasuredStudent, TrainingCost
from tdistill.evaluation.answer_files import SCORES, read_scores
from tdistill.experiment.answers import ANSWERS_KIND
from tdistill.experiment.artefact import MANIFEST, Manifest, has_manifest, read_manifest
from tdistill.experiment.evaluation import EvaluationNotes
from tdistill.experiment.experiment import EVALUATION, LATEST, MARKER, RECIPE_FILE
from tdistill.recipe.schema import Recipe
from tdistill.recipe.text import parse_yaml
from tdistill.runtime.errors import ConfigError, OutputError
from tdistill.runtime.forms import check_form
from tdistill.training.clock import SECONDS, TOKENS
from tdistill.training.log import read_history

TEMPERATURE = "temperature"
# Sections of a recipe that change no number, or name only places; and settings of its sections that change none.
FREE_SECTIONS = {"title", "output_dir"}
FREE = {"evaluation": {"batch_size", "num_samples_shown"}, "rollout": {"batch_size", "shard_batches"}, "train": {"monitor"}}
VALIDATION = "eval_loss"  # every validation logs it
# Why of two students with one method and one training seed only the first counts.
AGAIN = "Trained with the same settings and seed in several runs, of which the first named counts"
OTHER_SEEDS = (
    "Made several times with the same settings and training seed, but with other seeds of roll-outs, SFT or evaluation. The first counts, of "
    "one run that of its newest evaluation"
)
OLD = ("models/*/stage.json", "train/*/stage.json", "evaluate/*/stage.json")  # what versions without artefacts wrote


@dataclass(frozen=True)
class Evaluation:
    """Hold one complete evaluation of a run."""

    directory: Path
    run: Path
    recipe: Mapping[str, Any]
    teacher: str  # as the recipe names it
    prompts: frozenset[str]  # of the test set
    protocol: dict[str, Any]  # what must be equal for numbers to be comparable, beside the prompts
    systems: Sequence[Mapping[str, Any]]  # see ``SystemNotes``


@dataclass(frozen=True)
class Collected:
    """Hold everything that the pages show."""

    students: list[MeasuredStudent]
    evaluations: list[Evaluation]
    notes: list[str]


def collect(runs: Sequence[Path]) -> Collected:
    """Read all students of all runs.

    Raises:
        ConfigError: no run there, a run that is not evaluated, or runs whose numbers can't be compared.
        OutputError: a file of a run is missing or damaged.
    """
    notes: list[str] = []
    evaluations = [evaluation for run in dict.fromkeys(runs) for evaluation in _evaluations(run, notes)]
    for other in evaluations[1:]:
        check_comparable(evaluations[0], other)
    kept: dict[tuple[str, int], MeasuredStudent] = {}
    repeated: dict[str, dict[str, set[int]]] = {AGAIN: {}, OTHER_SEEDS: {}}
    for student in (s for e in evaluations for s in _students(e)):
        same = kept.setdefault((student.method, student.seed), student)
        why = OTHER_SEEDS if same.measured != student.measured else AGAIN if same.run != student.run else None
        if why is not None and not student.is_reference:
            repeated[why].setdefault(student.name, set()).add(student.seed)
    for why, found in repeated.items():
        listed = ", ".join(f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in found.items())
        notes += [f"{why}: {listed}."] if found else []
    return Collected(list(kept.values()), evaluations, notes)


def _evaluations(run: Path, notes: list[str]) -> list[Evaluation]:
    """Return the evaluations of an output directory, the newest first, or the single one that is named as RUN/evaluation/KEY."""
    if run.parent.name == EVALUATION and has_manifest(run):
        return [_read_evaluation(run, run.parent.parent)]
    if not (run / MARKER).is_file():
        raise ConfigError(f"{run} is no output directory of `tdistill run`: name the output_dir of a recipe that ran.")
    complete = sorted(_complete(run, EVALUATION), key=lambda place: (place / MANIFEST).lstat().st_mtime, reverse=True)
    if not complete and any(next(run.glob(pattern), None) for pattern in OLD):
        raise ConfigError(
            f"{run} was made by an earlier tdistill, whose results this version can't read: compare it with that version, or run its "
            f"recipe again: `tdistill run {run / RECIPE_FILE} output_dir=NEW`."
        )
    last = _read_last_recipe(run / RECIPE_FILE)
    command = f"`tdistill run {run / RECIPE_FILE}{'' if Path(last['output_dir']) == run else f' output_dir={run}'}`"
    if not complete:
        raise ConfigError(f"{run} has no complete evaluation: {command} first.")
    found = [_read_evaluation(place, run) for place in complete]
    link = run / LATEST / EVALUATION  # also there if the same content lay in another place when it was evaluated
    if not link.is_symlink() and all(_shaping(e.recipe) != _shaping(last) for e in found):
        notes.append(f"The recipe that ran last in {run} is not evaluated, only earlier ones are: {command}.")
    return found


def _complete(run: Path, kind: str) -> list[Path]:
    """Return the directories of a kind that have a manifest, whatever is in it."""
    return [place for place in sorted(run.glob(f"{kind}/*")) if has_manifest(place)]


def _shaping(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a recipe that change a number."""
    return {
        name: {k: v for k, v in section.items() if k not in FREE.get(name, ())} if isinstance(section, dict) else section
        for name, section in recipe.items()
        if name not in FREE_SECTIONS
    }


def _read_evaluation(directory: Path, run: Path) -> Evaluation:
    manifest = read_manifest(directory, copied=True)
    path, advice = directory / MANIFEST, f"Delete {directory} and run again: it alone is made anew."
    check_form(manifest.notes, EvaluationNotes, f"{path}: `notes`", OutputError, advice)
    notes, recipe = manifest.notes, manifest.provenance.get("recipe", {})
    check_form(recipe, dict[str, Any], f"{path}: `provenance.recipe`", OutputError, advice)
    return Evaluation(directory, run, recipe, notes["teacher"], frozenset(notes["prompts"]), notes["compared"], notes["systems"])


def check_comparable(one: Evaluation, other: Evaluation) -> None:
    """Raise ``ConfigError`` where two evaluations differ in teacher, test prompts or protocol, saying in what."""
    who = f"{one.directory} and {other.directory} can't be compared"
    if one.protocol.get("teacher") != other.protocol.get("teacher"):
        named = [f"{e.teacher} ({e.protocol.get('teacher')})" for e in (one, other)]
        raise ConfigError(f"{who}: their teachers are {named[0]} and {named[1]}. Compare students of one teacher.")
    if one.prompts != other.prompts:
        sizes = f"{len(one.prompts)} and {len(other.prompts)}, {len(one.prompts & other.prompts)} of them in both"
        raise ConfigError(f"{who}: their test prompts differ ({sizes}). Evaluate both on one test set.")
    differing = [k for k, v in one.protocol.items() if other.protocol.get(k) != v]
    if differing:
        said = "; ".join(f"{k} {one.protocol[k]} and {other.protocol.get(k)}" for k in differing)
        raise ConfigError(f"{who}: {said}. Evaluate both by one protocol, or name the ones to compare as RUN/{EVALUATION}/KEY.")


def _students(evaluation: Evaluation) -> Iterator[MeasuredStudent]:
    manifests = _answers_by_temperature(evaluation.run)
    for system in evaluation.systems:
        yield _student(evaluation, system, manifests)


def _student(evaluation: Evaluation, system: Mapping[str, Any], others: Mapping[str, Sequence[Manifest]]) -> MeasuredStudent:
    run = evaluation.run
    own = _manifest(run, system["answers"])
    answered = read_scores(run / system["answers"] / SCORES)
    _manifest(run, system["divergences"])
    same = [m for m in others.get(_but_temperature(own), ()) if m.key != own.key]
    sweep = {m.settings[TEMPERATURE]: read_scores(run / m.kind / m.key / SCORES) for m in same}
    found = {
        "name": system["name"],
        "seed": evaluation.recipe.get("seed", 0) if system["seed"] is None else system["seed"],
        "group": system["group"],
        "settings": system["settings"],
        "scores": answered | read_scores(run / system["divergences"] / SCORES),
        "run": run,
        "measured": (system["system"], system["answers"], system["divergences"]),
        "machine": str(_manifest(run, system["system"]).provenance.get("machine")),
        "by_temperature": sweep | {own.settings[TEMPERATURE]: answered},
    }
    if system["name"] in REFERENCES:
        return MeasuredStudent(objective=system["description"], **found)
    log = read_history(run / system["system"])
    validations = [e for e in log["history"] if VALIDATION in e and SECONDS in e]
    best, total = _costs(log["history"], log["best_step"] if _saves_best(system["settings"].get("arguments", {})) else None)
    return MeasuredStudent(objective=log["objective"], best=best, total=total, validations=validations, **found)


def _manifest(run: Path, place: str) -> Manifest:
    """Read the manifest of an artefact that an evaluation names.

    Raises:
        OutputError: it is missing or damaged.
    """
    if not has_manifest(run / place):
        raise OutputError(f"{run / place} is not complete, and an evaluation of {run} reads it: `tdistill run {run / RECIPE_FILE}` makes it.")
    return read_manifest(run / place, copied=True)


def _answers_by_temperature(run: Path) -> dict[str, list[Manifest]]:
    """Return the answers of a run, those together that differ by their temperature alone."""
    found: dict[str, list[Manifest]] = {}
    for place in _complete(run, ANSWERS_KIND):
        manifest = read_manifest(place, copied=True)
        found.setdefault(_but_temperature(manifest), []).append(manifest)
    return found


def _but_temperature(answers: Manifest) -> str:
    return str([sorted((k, str(v)) for k, v in answers.settings.items() if k != TEMPERATURE), sorted(answers.inputs.items())])


def _saves_best(arguments: Mapping[str, Any]) -> bool:
    """Tell whether the saved student is the best checkpoint and not the last one."""
    return arguments.get("load_best_model_at_end", True) and "no" not in (arguments.get(k) for k in ("eval_strategy", "save_strategy"))


def _costs(history: Sequence[dict[str, float]], best_step: int | None) -> tuple[TrainingCost, TrainingCost]:
    """Return the cost up to the saved checkpoint and the total cost. Both come from the last log entry of a step, its validation."""
    timed = [e for e in history if SECONDS in e]
    last = max(e["step"] for e in history)
    best = best_step or last
    at_best = [e for e in timed if e["step"] == best and VALIDATION in e] or [e for e in timed if e["step"] == best]
    return _cost(at_best[-1:], best), _cost(timed[-1:], last)


def _cost(entries: Sequence[dict[str, float]], steps: float) -> TrainingCost:
    entry = entries[0] if entries else {}
    return TrainingCost(entry.get(SECONDS, math.nan), entry.get(TOKENS, math.nan), steps)


def _read_last_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe that ran last in an output directory.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    advice = "Run any command of that recipe again, such as `tdistill report RECIPE`: it writes the file anew."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}. {advice}") from error
    try:
        return Recipe.model_validate(parse_yaml(content, str(path))).model_dump()
    except ConfigError as error:
        raise ConfigError(f"{error} {advice}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{path}: `{'.'.join(map(str, first['loc']))}`: {first['msg']}. {advice}") from None
