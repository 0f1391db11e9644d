"""Check a whole recipe before anything long starts: its sections against each other, and against the libraries that read them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdistill.models.head.contract import check_head
from tdistill.models.lora import check_lora
from tdistill.objectives import BoundObjective, bind
from tdistill.recipe.read import load_recipe
from tdistill.recipe.schema import DISTILLED, MethodConfig, Recipe, TrainConfig, ValueConfig
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.paths import check_path
from tdistill.training.argument_checks import check_training_arguments
from tdistill.training.arguments import validates_in_time
from tdistill.training.checks import unused_value_settings


def open_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file with overrides, and check all of it.

    Raises:
        ConfigError: see ``load_recipe`` and ``check_recipe``.
    """
    recipe = load_recipe(path, overrides)
    check_recipe(recipe, str(path))
    return recipe


def check_recipe(recipe: Recipe, where: str = "recipe") -> None:
    """Check across sections and libraries: objectives bind, training arguments work, p fits, and no setting would be ignored.

    Args:
        recipe: what is asked for.
        where: the file, for the message.

    Raises:
        ConfigError: with the key, what was got and what to change.
    """
    try:
        _check_paths(recipe)
        _check_objectives(recipe.train)
        _check_candidates(recipe)
        _check_origins(recipe)
        for place, arguments in argument_sections(recipe).items():
            check_training_arguments(arguments, place)
        _check_monitor(recipe.train)
        if recipe.train.peft is not None:
            check_lora(recipe.train.peft.lora)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def argument_sections(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return what every training run of a recipe passes to ``TrainingArguments``, by the section that says it."""
    found = {"sft.arguments": dict(recipe.sft.arguments)} if recipe.sft is not None else {}
    methods = recipe.train.methods()
    found["train.arguments"] = methods[DISTILLED].arguments
    for name, baseline in recipe.train.baselines.items():
        if baseline.arguments:
            found[f"train.baselines.{name}.arguments"] = methods[name].arguments
    return found


def _paths(recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    """Yield every key that names a file, a directory or a hub id, with its value."""
    yield "output_dir", recipe.output_dir
    yield "teacher.teacher_model_name_or_path", recipe.teacher.teacher_model_name_or_path
    for split in ("train", "valid", "test"):
        yield f"data.{split}", getattr(recipe.data, split)
    yield "student.student_model_name_or_path", recipe.student.student_model_name_or_path
    yield "train.lm.corpus", recipe.train.lm.corpus if recipe.train.lm is not None else None


def _check_paths(recipe: Recipe) -> None:
    for place, text in _paths(recipe):
        try:
            if text is not None:
                check_path(text)
        except ValueError as error:
            raise ConfigError(f"'{place}': {error}.") from None


def _check_objectives(train: TrainConfig) -> None:
    """Bind every objective, and check that it finds the data that it needs and reads the settings of the value head.

    ``train.value`` is shared: at least one of the objectives without settings of their own must read all of it.
    """
    shared = []
    for name, method in train.methods().items():
        own = train.baselines[name].value if name in train.baselines else None
        place = "train.objective" if name == DISTILLED else f"train.baselines.{name}"
        try:
            objective = bind(method.objective)
            _check_has_other(objective, method)
            check_head(method.head, objective.needs, objective.describe(), method.teacher_top_p == 1.0)
            if own is not None:
                _check_value(objective, own)
        except ConfigError as error:
            raise ConfigError(f"'{place}': {error}") from None
        if own is None:
            shared.append(objective)
    if shared and all(unused_value_settings(train.value, objective.needs) for objective in shared):
        try:
            _check_value(shared[-1], train.value)
        except ConfigError as error:
            raise ConfigError(f"'train.value': {error}") from None


def _check_has_other(objective: BoundObjective, method: MethodConfig) -> None:
    if "other" in objective.needs and (method.own_text is None or method.own_text.best_of > 1):
        raise ConfigError(
            f"{objective.describe()} learns from steps that are not the expert's: set 'train.on_policy: {{lmbda: 0.5}}' (with best_of: 1), or "
            "other: untaken where the objective has it."
        )


def _check_value(objective: BoundObjective, value: ValueConfig) -> None:
    """Raise ``ConfigError`` if the objective would leave out a setting of the value head or of the target network."""
    unused = unused_value_settings(value, objective.needs)
    if unused:
        lacks = "target network" if unused == ["target_tau"] else "value head"
        raise ConfigError(
            f"{objective.describe()} has no {lacks}, so value.{unused[0]} would do nothing: leave it out, or choose an objective with one."
        )


def _check_candidates(recipe: Recipe) -> None:
    p, cached = recipe.train.teacher_top_p, recipe.rollout.teacher_top_p
    if p is not None and cached < p < 1.0:
        raise ConfigError(f"'train.teacher_top_p' is {p}, above the roll-outs' {cached}: lower it, or roll out with more.")
    if p == 1.0 and recipe.train.candidate_rule is not None:
        raise ConfigError("'train.candidate_rule' cuts cached candidates, but 'train.teacher_top_p' is 1: lower it.")


def _check_origins(recipe: Recipe) -> None:
    if "human" in [*recipe.train.origins, *(recipe.sft.origins if recipe.sft else [])] and not recipe.rollout.score_references:
        raise ConfigError("training on origin human needs 'rollout.score_references: true'.")


def _check_monitor(train: TrainConfig) -> None:
    asked = {"early_stopping_patience": train.monitor.early_stopping_patience, "log_completions": train.monitor.log_completions}
    for key, value in asked.items():
        if value and not validates_in_time(train.arguments):
            raise ConfigError(
                f"'train.monitor.{key}' acts at validations, and train.arguments ask for none in time: set eval_strategy, eval_steps."
            )
