"""Read a recipe with overrides, and check all that can be checked before anything long starts."""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from tdistill.config import Recipe, TrainConfig
from tdistill.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tdistill.objectives import BoundObjective

# What a recipe can't pass: the run owns them.
OWNED_ARGUMENTS = frozenset({"output_dir", "seed", "data_seed", "remove_unused_columns", "do_train", "do_eval", "push_to_hub"})


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: plain YAML 1.1 reads 1e-4 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)|[0-9]+\.[0-9]*|\.[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Parse a recipe file, apply ``key.sub=value`` overrides, and check it.

    Raises:
        ConfigError: no such file, no YAML, an unknown or ill-typed key (with its place and the nearest valid one).
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"No recipe at {path}. Recipes in this repository lie in recipes/.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must be a mapping of sections, got {type(raw).__name__}.")
    for override in overrides or []:
        _apply(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {_explain(e)}" for e in error.errors())) from None
    check_recipe(recipe, str(path))
    return recipe


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"Override {override!r} must look like section.key=value.")
    *parents, last = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        index = int(part) if isinstance(node, list) and part.isdigit() else part
        if isinstance(node, list):
            if not isinstance(index, int) or index >= len(node):
                raise ConfigError(f"Override {override!r}: {'.'.join(parents[:depth])} is a list of {len(node)}; use an index.")
            node = node[index]
        else:
            if node.get(index) is None:
                node[index] = {}
            node = node[index]
        if not isinstance(node, dict | list):
            raise ConfigError(f"Override {override!r}: {'.'.join(parents[: depth + 1])} is no section.")
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"Override {override!r}: {value!r} is not YAML.") from None
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise ConfigError(f"Override {override!r}: {last!r} is no index of a list of {len(node)}.")
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section = _section(error["loc"][:-1])
        known = section.model_fields if section is not None else []
        return f"unknown key {place!r}.{nearest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{place!r} is missing."
    got = error.get("input")
    return f"{place!r}: {error['msg']}" + ("." if isinstance(got, dict) else f", got {got!r}.")


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
    """Checks across sections and libraries: objectives bind, training arguments exist, p fits.

    Raises:
        ConfigError: with what to change.
    """
    from tdistill.mdp.candidates import CandidateRule
    from tdistill.objectives import bind

    for name, objective in {"train.objective": recipe.train.objective, **{k: b.objective for k, b in recipe.train.baselines.items()}}.items():
        try:
            _check_has_other(bind(objective), recipe.train, name)
        except ConfigError as error:
            place = name if name == "train.objective" else f"train.baselines.{name}"
            raise ConfigError(f"{where}: {place!r}: {error}") from None
    p, cached = recipe.train.teacher_top_p, recipe.rollout.teacher_top_p
    if p is not None and cached < p < 1.0:
        raise ConfigError(f"{where}: 'train.teacher_top_p' is {p}, above the roll-outs' {cached}: lower it, or roll out with more.")
    if recipe.train.candidate_rule is not None:
        if p == 1.0:
            raise ConfigError(f"{where}: 'train.candidate_rule' cuts cached candidates, but 'train.teacher_top_p' is 1: lower it.")
        try:
            CandidateRule(recipe.train.candidate_rule.name, recipe.train.candidate_rule.value)
        except ConfigError as error:
            raise ConfigError(f"{where}: 'train.candidate_rule': {error}") from None
    if "human" in [*recipe.train.origins, *(recipe.sft.origins if recipe.sft else [])] and not recipe.rollout.score_references:
        raise ConfigError(f"{where}: training on origin human needs 'rollout.score_references: true'.")
    if recipe.train.peft is not None:
        from tdistill.adapters import check_lora

        check_lora(recipe.train.peft.lora)
    for section in ("sft", "train"):
        config = getattr(recipe, section)
        if config is not None:
            _check_arguments(config.arguments, f"{where}: '{section}.arguments")
    for name, baseline in recipe.train.baselines.items():
        _check_arguments({**recipe.train.arguments, **baseline.arguments}, f"{where}: 'train.baselines.{name}.arguments")


def _check_has_other(objective: "BoundObjective", train: TrainConfig, name: str) -> None:
    on_policy = (train.baselines[name].on_policy if name in train.baselines else None) or train.on_policy
    if "other" in objective.needs and (on_policy is None or on_policy.lmbda == 0.0):
        raise ConfigError(
            f"{objective.describe()} learns from steps that are not the expert's: set 'train.on_policy: {{lmbda: 0.5}}', or "
            "other: untaken where the objective has it."
        )


def _check_arguments(arguments: dict[str, Any], place: str) -> None:
    from transformers import TrainingArguments

    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    for key in arguments:
        if key in OWNED_ARGUMENTS:
            raise ConfigError(f"{place}.{key}' is set by tdistill itself: leave it out.")
        if key not in known:
            raise ConfigError(f"{place}.{key}' is no argument of transformers.TrainingArguments.{nearest(key, known)}")
    for key, least in {"learning_rate": 0.0, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}.items():
        value = arguments.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            raise ConfigError(f"{place}.{key}' must be a number, at least {least:g}, got {value!r}.")
    if not isinstance(arguments.get("max_steps", 1), int) or arguments.get("max_steps", -1) == 0:
        raise ConfigError(f"{place}.max_steps' must be a whole number above 0, got {arguments['max_steps']!r}.")
    from tdistill.training.run import training_arguments

    try:
        training_arguments(arguments, "unused", seed=0)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{place}': {error}") from None
