"""Make the plan of a recipe, and look for settings that make it fit where it does not."""

from pathlib import Path

from tdistill.experiment.experiment import Experiment
from tdistill.planning.advice import advice
from tdistill.planning.facts import gather
from tdistill.planning.lengths import Expected
from tdistill.planning.pages import Planned, plan_data
from tdistill.planning.plan import Misfit, misfits, plan_stages
from tdistill.recipe.overrides import apply_overrides
from tdistill.recipe.schema import Recipe
from tdistill.runtime.disk import disk_errors
from tdistill.runtime.files import write_json


def plan(experiment: Experiment, device: str | None = None, expected: Expected | None = None) -> Planned:
    """Return the plan of a recipe. Nothing is written and no weight is loaded.

    Args:
        experiment: it need not be prepared.
        device: a name of ``machines.DEVICES``; None: this machine.
        expected: what the user knows better than the recipe's bounds.

    Raises:
        ModelError, DataError, ConfigError: a model, a prompt file or the device can't be used.
    """
    recipe, facts = experiment.recipe, gather(experiment, device, expected or Expected())
    stages = plan_stages(recipe, facts, experiment.root)

    def again(overrides: list[str]) -> list[Misfit]:
        return misfits(plan_stages(changed(recipe, overrides), facts, experiment.root), facts)

    return Planned(facts, stages, {misfit: advice(recipe, misfit, again) for misfit in misfits(stages, facts)})


def changed(recipe: Recipe, overrides: list[str]) -> Recipe:
    """Return a recipe with overrides, as the command line applies them."""
    raw = recipe.model_dump()
    apply_overrides(raw, overrides)
    return Recipe(**raw)


def write_plan(path: Path, planned: Planned) -> None:
    """Write a plan to a file, as JSON.

    Raises:
        OutputError: the file can't be written.
    """
    with disk_errors(path.parent):
        write_json(path, plan_data(planned))
