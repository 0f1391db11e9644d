"""Read a recipe with overrides, and check all that can be checked before anything long starts."""

import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tdistill.recipe.overrides import apply_overrides
from tdistill.recipe.plain import check_path, find_unplain
from tdistill.recipe.schema import BaselineConfig, Recipe, TrainConfig, ValueConfig
from tdistill.recipe.text import MOST_BYTES, parse_yaml
from tdistill.runtime.errors import ConfigError, brief, nearest
from tdistill.runtime.progress import say

if TYPE_CHECKING:
    from tdistill.objectives import BoundObjective


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Parse a recipe file, apply ``key.sub=value`` overrides, and check it.

    Raises:
        ConfigError: no such file, no YAML, an unknown or ill-typed key (with its place and the nearest valid one), or options that
            contradict each other.
    """
    raw = parse_yaml(_read(Path(path)), str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a mapping of sections, got {brief(raw)}.")
    for undone in apply_overrides(raw, overrides or []):
        say(undone)
    unplain = find_unplain(raw)
    if unplain is not None:
        raise ConfigError(f"{path}: {unplain.place!r} {unplain.problem}.")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_explain(e)}" for e in error.errors()[:MOST_PROBLEMS])) from None
    check_recipe(recipe, str(path))
    return recipe


MOST_PROBLEMS = 20  # of one recipe, in one message


def _read(path: Path) -> bytes:
    if not path.is_file():
        what = "It is a directory" if path.is_dir() else "No such file"
        raise ConfigError(f"No recipe at {path}: {what.lower()}. Recipes of the repository lie in recipes/.")
    try:
        with path.open("rb") as handle:
            return handle.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}.") from None


def _explain(error: Any) -> str:
    place = ".".join(f"{part!s:.60}" for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = _section(error["loc"][:-1])
        known = section.model_fields if section is not None else []
        return f"unknown key {place!r}.{nearest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{place!r} is missing."
    problem = str(error["msg"]).removeprefix("Value error, ")
    # A message of our own check names what it got.
    return f"{place!r}: {problem}." if error["type"] == "value_error" else f"{place!r}: {problem}, got {brief(error.get('input'))}."


def _section(location: tuple[Any, ...]) -> type[BaseModel] | None:
    model: Any = Recipe
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return None
        model = field.annotation
        if isinstance(model, types.UnionType):
            model = next((a for a in typing.get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
    return model


def check_recipe(recipe: Recipe, where: str = "recipe") -> None:
    """Check across sections and libraries: objectives bind, training arguments work, p fits, and no setting would be ignored.

    Raises:
        ConfigError: with what to change.
    """
    try:
        _check_paths(recipe)
        _check_objectives(recipe.train)
        _check_candidates(recipe)
        _check_origins(recipe)
        _check_arguments(recipe)
        _check_monitor(recipe.train)
        if recipe.train.peft is not None:
            from tdistill.models.lora import check_lora

            check_lora(recipe.train.peft.lora)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_paths(recipe: Recipe) -> None:
    paths = {"output_dir": recipe.output_dir, "teacher.teacher_model_name_or_path": recipe.teacher.teacher_model_name_or_path}
    paths |= {f"data.{split}": getattr(recipe.data, split) for split in ("train", "valid", "test")}
    if recipe.student.student_model_name_or_path is not None:
        paths["student.student_model_name_or_path"] = recipe.student.student_model_name_or_path
    if recipe.train.lm is not None:
        paths["train.lm.corpus"] = recipe.train.lm.corpus
    for place, text in paths.items():
        try:
            check_path(text)
        except ValueError as error:
            raise ConfigError(f"'{place}': {error}.") from None


def _check_objectives(train: TrainConfig) -> None:
    from tdistill.objectives import bind

    bound = {}
    for name, system in _systems(train).items():
        place = "train.objective" if name == DISTILLED else f"train.baselines.{name}"
        try:
            bound[name] = bind(system.objective)
            _check_has_other(bound[name], system.on_policy or train.on_policy)
            _check_value(bound[name], system.value)
        except ConfigError as error:
            raise ConfigError(f"'{place}': {error}") from None
    shared = [bound[name] for name, system in _systems(train).items() if system.value is None]
    if shared and all(_value_problem(objective, train.value) for objective in shared):
        raise ConfigError(f"'train.value': {_value_problem(shared[-1], train.value)}")


DISTILLED = "distilled"


def _systems(train: TrainConfig) -> dict[str, BaselineConfig]:
    return {**train.baselines, DISTILLED: BaselineConfig(objective=train.objective)}


def _check_has_other(objective: "BoundObjective", on_policy: Any) -> None:
    if "other" in objective.needs and (on_policy is None or on_policy.lmbda == 0.0):
        raise ConfigError(
            f"{objective.describe()} learns from steps that are not the expert's: set 'train.on_policy: {{lmbda: 0.5}}', or "
            "other: untaken where the objective has it."
        )


def _check_value(objective: "BoundObjective", value: ValueConfig | None) -> None:
    problem = _value_problem(objective, value) if value is not None else ""
    if problem:
        raise ConfigError(problem)


def _value_problem(objective: "BoundObjective", value: ValueConfig) -> str:
    """Say which settings of the value head or the target network the objective would leave out."""
    heads, default = objective.needs & {"value", "action_value"}, ValueConfig()
    changed = [k for k in ValueConfig.model_fields if getattr(value, k) != getattr(default, k)]
    unused = [k for k in changed if not ("target" in objective.needs if k == "target_tau" else heads)]
    if not unused:
        return ""
    lacks = "target network" if unused == ["target_tau"] else "value head"
    return f"{objective.describe()} has no {lacks}, so value.{unused[0]} would do nothing: leave it out, or choose an objective with one."


def _check_candidates(recipe: Recipe) -> None:
    p, cached, rule = recipe.train.teacher_top_p, recipe.rollout.teacher_top_p, recipe.train.candidate_rule
    if p is not None and cached < p < 1.0:
        raise ConfigError(f"'train.teacher_top_p' is {p}, above the roll-outs' {cached}: lower it, or roll out with more.")
    if rule is not None and p == 1.0:
        raise ConfigError("'train.candidate_rule' cuts cached candidates, but 'train.teacher_top_p' is 1: lower it.")


def _check_origins(recipe: Recipe) -> None:
    if "human" in [*recipe.train.origins, *(recipe.sft.origins if recipe.sft else [])] and not recipe.rollout.score_references:
        raise ConfigError("training on origin human needs 'rollout.score_references: true'.")


def argument_sections(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return what every training run of a recipe passes to ``TrainingArguments``, by the section that says it."""
    found = {"sft.arguments": dict(recipe.sft.arguments)} if recipe.sft is not None else {}
    found["train.arguments"] = dict(recipe.train.arguments)
    for name, baseline in recipe.train.baselines.items():
        if baseline.arguments:
            found[f"train.baselines.{name}.arguments"] = {**recipe.train.arguments, **baseline.arguments}
    return found


def _check_arguments(recipe: Recipe) -> None:
    from tdistill.training.argument_checks import check_training_arguments

    for place, arguments in argument_sections(recipe).items():
        check_training_arguments(arguments, place)


def _check_monitor(train: TrainConfig) -> None:
    from tdistill.training.arguments import validates_in_time

    asked = {"early_stopping_patience": train.monitor.early_stopping_patience, "log_completions": train.monitor.log_completions}
    for key, value in asked.items():
        if value and not validates_in_time(train.arguments):
            raise ConfigError(
                f"'train.monitor.{key}' acts at validations, and train.arguments ask for none in time: set eval_strategy, eval_steps."
            )
