"""Every example in a docstring of the mathematics gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import tdistill.mdp
import tdistill.objectives

MODULES = [m.name for room in (tdistill.mdp, tdistill.objectives) for m in pkgutil.walk_packages(room.__path__, room.__name__ + ".")]
WITH_EXAMPLES = {
    "tdistill.mdp.bellman",
    "tdistill.mdp.candidates",
    "tdistill.mdp.steps",
    "tdistill.objectives.bind",
}  # modules whose examples must not go


def attempted(name: str) -> int:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, f"{name}: {result.failed} of {result.attempted} examples fail"
    return result.attempted


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    assert attempted(name) > 0 or name not in WITH_EXAMPLES
