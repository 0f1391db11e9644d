"""Define the algorithms on one contract. ``registry`` lists them, ``bind`` checks a name and its arguments, ``parts`` holds shared helpers."""

from tdistill.objectives.bind import bind
from tdistill.objectives.contract import BoundObjective, Objective, ObjectiveOutput
from tdistill.objectives.registry import OBJECTIVES

__all__ = ["OBJECTIVES", "BoundObjective", "Objective", "ObjectiveOutput", "bind"]
