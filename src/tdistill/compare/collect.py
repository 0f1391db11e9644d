"""Read the students out of the output directories of ``tdistill run``. Only complete stages are read, and neither models nor prompts are
needed.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tdistill.cache.read import read_manifest
from tdistill.compare.data import Scores, Student, TrainingCost
from tdistill.evaluation.metrics import TEACHER
from tdistill.experiment.evaluation import read_scores
from tdistill.experiment.pipeline import MARKER
from tdistill.experiment.run_files import STAGE_FILE, is_complete, read_run_file, read_stage_file
from tdistill.experiment.run_forms import RecipeForm, SweepForm, TrainedForm
from tdistill.experiment.students import DONE
from tdistill.experiment.temperatures import SWEEP, TEMPERATURES, read_sweep
from tdistill.recipe.schema import Recipe
from tdistill.recipe.text import parse_yaml
from tdistill.runtime.errors import CacheError, ConfigError
from tdistill.runtime.forms import check_form
from tdistill.statistics.equal_entropy import ENTROPY
from tdistill.training.clock import SECONDS, TOKENS
from tdistill.training.log import read_history

# Stage → the sections of a recipe that its content comes from: equal sections, the same content.
UPSTREAM = ("seed", "data", "teacher", "student", "rollout")
SECTIONS = {"rollout": UPSTREAM, "train": (*UPSTREAM, "sft", "train")}
# Settings of an evaluation that do not change its numbers.
FREE = ("batch_size", "num_samples_shown")
SAMPLING = ("temperature", "top_p", "top_k", "num_generations", "max_completion_length")
VALIDATION = "eval_loss"  # every validation logs it


@dataclass(frozen=True)
class Evaluation:
    """Hold one complete evaluation of a run."""

    directory: Path
    run: Path
    recipe: dict[str, Any]
    teacher: str  # as the recipe names it
    prompts: frozenset[str]  # of the test set
    protocol: dict[str, Any]  # what must be equal for numbers to be comparable, beside the prompts
    systems: list[str]


@dataclass(frozen=True)
class Collected:
    """Hold everything that the pages show."""

    students: list[Student]
    evaluations: list[Evaluation]
    notes: list[str]


def collect(runs: Sequence[Path]) -> Collected:
    """Read all students of all runs.

    Raises:
        ConfigError: no run there, a run that is not evaluated, or runs whose numbers can't be compared.
    """
    notes: list[str] = []
    evaluations = [evaluation for run in dict.fromkeys(runs) for evaluation in _evaluations(run, notes)]
    for other in evaluations[1:]:
        check_comparable(evaluations[0], other)
    kept: dict[tuple[str, int], Student] = {}
    repeated: dict[str, set[int]] = {}
    for student in (s for e in evaluations for s in _students(e)):
        same = kept.setdefault((student.method, student.seed), student)
        if same.run != student.run and not student.is_reference:
            repeated.setdefault(student.name, set()).add(student.seed)
    if repeated:
        listed = ", ".join(f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in repeated.items())
        notes.append(f"Trained with the same settings and seed in several runs, of which the first named counts: {listed}.")
    return Collected(list(kept.values()), evaluations, notes)


def _evaluations(run: Path, notes: list[str]) -> list[Evaluation]:
    """Return the evaluations of an output directory, the newest first, or the single one that is named as RUN/evaluate/KEY."""
    if run.parent.name == "evaluate" and is_complete(run):
        return [_read_evaluation(run, run.parent.parent)]
    if not (run / MARKER).is_file():
        raise ConfigError(f"{run} is no output directory of `tdistill run`: name the output_dir of a recipe that ran.")
    complete = sorted(run.glob(f"evaluate/*/{STAGE_FILE}"), key=lambda p: p.stat().st_mtime, reverse=True)
    last = _read_last_recipe(run / "recipe.yaml")
    command = f"`tdistill run {run / 'recipe.yaml'}{'' if Path(last['output_dir']) == run else f' output_dir={run}'}`"
    if not complete:
        raise ConfigError(f"{run} has no complete evaluation: {command} first.")
    found = [_read_evaluation(path.parent, run) for path in complete]
    if all(_shaping(e.recipe) != _shaping(last) for e in found):
        notes.append(f"The recipe that ran last in {run} is not evaluated, only earlier ones are: {command}.")
    return found


def _shaping(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a recipe that change a number."""
    evaluation = {k: v for k, v in recipe["evaluation"].items() if k not in FREE}
    return {k: recipe[k] for k in SECTIONS["train"]} | {"evaluation": evaluation}


def _read_evaluation(directory: Path, run: Path) -> Evaluation:
    stage = read_stage_file(directory, copied=True)
    recipe = _recipe(stage["provenance"]["recipe"], directory / STAGE_FILE)
    test = _manifest(run, recipe, "test")
    own = {k: v for k, v in recipe["evaluation"].items() if k not in (*FREE, "max_completion_length", "seed")}
    protocol = {
        **{f"evaluation.{k}": v for k, v in own.items()},
        "length of an answer": recipe["evaluation"]["max_completion_length"] or recipe["rollout"]["max_completion_length"],
        **{f"roll-outs' {k}": test[k] for k in SAMPLING},
        "chat template": test["template"],
        "teacher": test["teacher"],
    }
    teacher = recipe["teacher"]["teacher_model_name_or_path"]
    return Evaluation(directory, run, recipe, teacher, frozenset(test["prompts"]), protocol, stage["notes"]["systems"])


def check_comparable(one: Evaluation, other: Evaluation) -> None:
    """Raise ``ConfigError`` where two evaluations differ in teacher, test prompts or protocol, saying in what."""
    who = f"{one.directory} and {other.directory} can't be compared"
    if one.protocol["teacher"] != other.protocol["teacher"]:
        named = [f"{e.teacher} ({e.protocol['teacher']})" for e in (one, other)]
        raise ConfigError(f"{who}: their teachers are {named[0]} and {named[1]}. Compare students of one teacher.")
    if one.prompts != other.prompts:
        sizes = f"{len(one.prompts)} and {len(other.prompts)}, {len(one.prompts & other.prompts)} of them in both"
        raise ConfigError(f"{who}: their test prompts differ ({sizes}). Evaluate both on one test set.")
    differing = [k for k, v in one.protocol.items() if other.protocol[k] != v]
    if differing:
        said = "; ".join(f"{k} {one.protocol[k]} and {other.protocol[k]}" for k in differing)
        raise ConfigError(f"{who}: {said}. Evaluate both by one protocol, or name the ones to compare as RUN/evaluate/KEY.")


def _students(evaluation: Evaluation) -> Iterator[Student]:
    run, recipe = evaluation.run, evaluation.recipe
    trained = _stage(run, "train", recipe)
    stage = read_stage_file(trained, copied=True)
    shared = _shared_settings(run, recipe)
    sweep = _sweep(evaluation)
    upstream = {TEACHER: {}, "start": {"student": shared["student"]}}
    for name in evaluation.systems:
        record = read_scores(evaluation.directory, name)
        common = {"name": name, "seed": recipe["seed"], "scores": record["scores"], "run": run, "machine": stage["provenance"]["machine"]}
        own = {recipe["evaluation"]["temperature"]: record["scores"]} if record["scores"].get(ENTROPY) else {}
        common["by_temperature"] = sweep.get(name, {}) | own
        if name not in stage["notes"]:
            yield Student(objective=record["description"], settings=upstream.get(name, shared), **common)
            continue
        done, history = read_run_file(trained / name / DONE, TrainedForm), read_history(trained / name)
        settings = shared | _own_settings(recipe["train"], name)
        validations = [e for e in history["history"] if VALIDATION in e and SECONDS in e]
        costs = _costs(history["history"], history["best_step"] if _saves_best(settings["arguments"]) else None)
        yield Student(objective=done["objective"], settings=settings, best=costs[0], total=costs[1], validations=validations, **common)


def _sweep(evaluation: Evaluation) -> dict[str, dict[float, Scores]]:
    """Return system → decoding temperature → scores, measured beside the evaluation on the same prompts and by the same protocol."""
    found: dict[str, dict[float, Scores]] = {}
    for path in sorted(evaluation.run.glob(f"{TEMPERATURES}/*/{SWEEP}")):
        about = read_run_file(path, SweepForm)
        recipe = _recipe(about["recipe"], path)
        if about["settings"]["split"] == "test" and _but_temperature(recipe) == _but_temperature(evaluation.recipe):
            for measured in read_sweep(path.parent, evaluation.systems):
                found.setdefault(measured.system, {})[measured.temperature] = measured.scores
    return found


def _but_temperature(recipe: dict[str, Any]) -> dict[str, Any]:
    shaping = _shaping(recipe)
    return shaping | {"evaluation": shaping["evaluation"] | {"temperature": None}}


def _shared_settings(run: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that all students of a run share, without seed and objective. Prompts and teacher are identified by content, not by
    path.
    """
    manifests = {split: _manifest(run, recipe, split) for split in ("train", "valid")}
    return {
        "student": recipe["student"],
        "rollout": _without_seed(recipe["rollout"], recipe),
        "sft": _without_seed(recipe["sft"], recipe),
        "teacher": {"content": manifests["train"]["teacher"], "dtype": recipe["teacher"]["dtype"]},
        **{f"{split} prompts": _digest(manifest["prompts"]) for split, manifest in manifests.items()},
    }


def _without_seed(section: dict[str, Any] | None, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return a section without its seed where this is the recipe's own: methods are equal if they differ by that alone."""
    if section is None or section.get("seed") != recipe["seed"]:
        return section
    return {k: v for k, v in section.items() if k != "seed"}


def _own_settings(train: dict[str, Any], name: str) -> dict[str, Any]:
    own = train["baselines"].get(name) or {"objective": train["objective"], "arguments": {}, "on_policy": None}
    arguments = train["arguments"] | own["arguments"]
    shared = {k: v for k, v in train.items() if k not in ("objective", "baselines", "arguments", "on_policy", "seeds")}
    return {
        "objective": own["objective"],
        "arguments": arguments,
        "on_policy": own["on_policy"] or train["on_policy"],
        "train": shared,
    }


def _saves_best(arguments: dict[str, Any]) -> bool:
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


def _manifest(run: Path, recipe: dict[str, Any], split: str) -> dict[str, Any]:
    """Return the settings of a split's roll-outs."""
    directory = _stage(run, "rollout", recipe) / split
    settings = read_manifest(directory).settings
    if missing := [key for key in ("teacher", "template") if key not in settings]:
        raise CacheError(f"{directory} does not say which {' and '.join(missing)} it was made with. Roll out again.")
    return settings


def _stage(run: Path, name: str, recipe: dict[str, Any]) -> Path:
    """Return the newest complete directory of a stage that was made from the same sections of a recipe."""
    wanted = [recipe[k] for k in SECTIONS[name]]
    for path in sorted(run.glob(f"{name}/*/{STAGE_FILE}"), key=lambda p: p.stat().st_mtime, reverse=True):
        own = _recipe(read_stage_file(path.parent, copied=True)["provenance"]["recipe"], path)
        if [own[k] for k in SECTIONS[name]] == wanted:
            return path.parent
    raise ConfigError(f"{run} has an evaluation, but not the {name} stage that it read: `tdistill run {run / 'recipe.yaml'}` makes it again.")


def _digest(prompts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12]


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
        raw = parse_yaml(content, str(path))
    except ConfigError as error:
        raise ConfigError(f"{error} {advice}") from None
    return _recipe(raw, path, advice)


def _recipe(raw: Any, path: Path, advice: str = "It is damaged, or of a version of tdistill that can't be compared with.") -> dict[str, Any]:
    """Return a recipe with the options that came after it at their defaults, so that runs of two versions can be of one method.

    Raises:
        ConfigError: it is no recipe that a run can have had.
    """
    try:
        return Recipe.model_validate(raw).model_dump()
    except ValidationError:  # it has options that are gone: it can equal none of today's
        check_form(raw, RecipeForm, f"{path}: recipe", ConfigError, advice)
        return raw
