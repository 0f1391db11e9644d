"""Every example in a docstring of the mathematics, the statistics, the metrics and the pages gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import tdistill.evaluation
import tdistill.mdp
import tdistill.objectives
import tdistill.pages
import tdistill.statistics

ROOMS = (tdistill.mdp, tdistill.objectives, tdistill.statistics, tdistill.evaluation, tdistill.pages)
MODULES = [m.name for room in ROOMS for m in pkgutil.walk_packages(room.__path__, room.__name__ + ".")]
WITH_EXAMPLES = {
    "tdistill.evaluation.metrics",
    "tdistill.mdp.bellman",
    "tdistill.mdp.candidates",
    "tdistill.mdp.steps",
    "tdistill.objectives.bind",
    "tdistill.pages.tables",
    "tdistill.statistics.estimate",
}  # modules whose examples must not go


def attempted(name: str) -> int:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, f"{name}: {result.failed} of {result.attempted} examples fail"
    return result.attempted


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    assert attempted(name) > 0 or name not in WITH_EXAMPLES
