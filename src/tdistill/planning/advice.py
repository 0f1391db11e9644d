"""Find settings under which a stage fits: every one is tried, alone and with those before it, by planning the stage again."""

from collections.abc import Callable, Iterator
from typing import Any

from tdistill.planning.plan import Misfit
from tdistill.recipe.schema import Recipe
from tdistill.training.arguments import DEFAULT_ARGUMENTS

Plan = Callable[[list[str]], list[Misfit]]  # overrides → what does not fit then


def advice(recipe: Recipe, misfit: Misfit, plan: Plan) -> list[str] | None:
    """Return the overrides with which a stage fits, as few as one where one is enough; None if none of those that are known helps.

    Args:
        recipe: what was asked for.
        misfit: what does not fit.
        plan: plans the recipe again, with more overrides.

    Examples:
        >>> recipe = Recipe(output_dir="x", data={"train": "a", "valid": "b", "test": "c"}, teacher={"teacher_model_name_or_path": "t"},
        ...     student={"num_hidden_layers": 2}, train={"objective": "nll"})
        >>> full = Misfit("rollout", "memory", 2, 1)
        >>> advice(recipe, full, lambda overrides: [] if "rollout.batch_size=8" in overrides else [full])
        ['rollout.batch_size=8']
    """

    def fits(overrides: list[str]) -> bool:
        return all((m.stage, m.place) != (misfit.stage, misfit.place) for m in plan(overrides))

    tried = list(remedies(recipe, misfit))
    for remedy in tried:
        if fits(remedy):
            return remedy
    together: dict[str, str] = {}
    for remedy in tried:
        together |= {override.partition("=")[0]: override for override in remedy}
        if fits(list(together.values())):
            return list(together.values())
    return None


def remedies(recipe: Recipe, misfit: Misfit) -> Iterator[list[str]]:
    """Yield overrides that save memory or disk in a stage, the mildest first. Each is complete in itself."""
    stage = misfit.stage.split(" ")[0]
    if stage == "rollout":
        yield from ([f"rollout.batch_size={n}"] for n in _halved(recipe.rollout.batch_size))
        yield from _in_bfloat16("teacher.dtype", recipe.teacher.dtype)
    elif stage == "evaluate":
        yield from ([f"evaluation.batch_size={n}"] for n in _halved(recipe.evaluation.batch_size))
        yield from _in_bfloat16("evaluation.dtype", recipe.evaluation.dtype)
    elif stage in ("sft", "train"):
        own = recipe.sft.arguments if stage == "sft" and recipe.sft is not None else recipe.train.arguments
        if misfit.place != "disk" and recipe.train.head.name == "full":
            yield ["train.head=auto"]
        yield from _of_training(stage, {**DEFAULT_ARGUMENTS, **own}, misfit.place)
        yield from _in_bfloat16("teacher.dtype", recipe.teacher.dtype)


def _of_training(stage: str, arguments: dict[str, Any], place: str) -> Iterator[list[str]]:
    def override(name: str, value: Any) -> str:
        return f"{stage}.arguments.{name}={value}"

    if place == "disk":
        yield [override("save_total_limit", 1)]
        return
    for n in _halved(arguments["per_device_eval_batch_size"]):
        yield [override("per_device_eval_batch_size", n)]
    batch, accumulated = arguments["per_device_train_batch_size"], arguments.get("gradient_accumulation_steps", 1)
    for n in _halved(batch):
        if batch % n == 0:  # as many examples a step as before
            more = override("gradient_accumulation_steps", accumulated * batch // n)
            yield [override("per_device_train_batch_size", n), more]
    if not arguments.get("activation_checkpointing"):
        yield [override("activation_checkpointing", "true")]
    if not arguments.get("bf16"):
        yield [override("bf16", "true")]


def _in_bfloat16(key: str, dtype: str) -> Iterator[list[str]]:
    if dtype == "float32":
        yield [f"{key}=bfloat16"]


def _halved(n: int) -> list[int]:
    """Return n/2, n/4 and so on down to 1."""
    return [n >> i for i in range(1, n.bit_length())]
