"""List the step tasks."""

from collections.abc import Mapping
from typing import Any

from arithmetic import Arithmetic
from price_lists import PriceLists
from prices import Prices
from task import Task
from word_problems import WordProblems

from tdistill.runtime.errors import ConfigError

TASKS: dict[str, type[Task]] = {
    "arithmetic": Arithmetic,
    "price_lists": PriceLists,
    "prices": Prices,
    "word_problems": WordProblems,
}


def task_of(name: str, settings: Mapping[str, Any]) -> Task:
    """Return a task with its settings.

    Raises:
        ConfigError: there is no task of this name, so nothing can check its answers, or a setting is wrong.
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}, and so no checker of its answers. There are {', '.join(TASKS)}.")
    return TASKS[name].made(settings)
