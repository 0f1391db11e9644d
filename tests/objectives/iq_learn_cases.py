"""What the tests of ``iq_learn`` share: its knobs, its oracle, and a batch with every kind of step."""

import itertools
from typing import Any

import builders
import oracles_inverse
import torch
from pairwise import pairwise
from torch import Tensor

from tdistill.objectives import bind
from tdistill.objectives.contract import BoundObjective

GAUGES = ["none", "max", "max_support", "mean_support", "lse", "learned"]
KNOBS = pairwise(
    dict(zip(("phi", "terminal", "estimator", "gauge", "anchor", "q_min"), values, strict=True))
    for values in itertools.product(
        [("chi2", "zero"), ("chi2", "absorbing"), ("linear", "zero")],
        ["sampled", "expected"],
        GAUGES,
        ["none", "tail", "nll"],
        [None, -1.0],
    )
    for values in [(*values[0], *values[1:])]
)
# As published, so that a test turns one knob at a time from the paper's equation.
PUBLISHED: dict[str, Any] = {"alpha": 0.1, "gauge": "max", "estimator": "sampled", "anchor": "none", "q_min": -10.0}
PLAIN: dict[str, Any] = {"phi": "linear", "anchor": "none", "q_min": None}  # cloning on A_p, in any gauge


def bound(**knobs: Any) -> BoundObjective:
    """``iq_learn`` as published but for what is given."""
    return bind("iq_learn", **PUBLISHED | knobs)


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(**knobs: Any) -> Any:
    return lambda response: [step.loss for step in oracles_inverse.iq_learn(response, **knobs)]


def loss_of(world: builders.World, **knobs: Any) -> Tensor:
    return builders.loss_and_grads(world, bound(**knobs))[0]


def counted(world: builders.World) -> Tensor:
    """Steps with a TD loss: on support, and not the last of a cut-off."""
    steps = builders.steps_of(world)
    last = torch.arange(world.tokens.shape[1]) == torch.tensor(world.lengths).unsqueeze(-1) - 1
    return steps.mask_t & (steps.a_t >= 0) & (~last | steps.terminal_t)


def every_kind_of_step() -> builders.World:
    """Three responses, one cut off, with tokens on and off support among the counted and the last steps."""
    made = builders.make_world(seed=21, lengths=(4, 3, 2), finished=(True, False, True), p=0.8)
    assert 4 <= counted(made).sum() < made.mask.sum() - 1
    return made
