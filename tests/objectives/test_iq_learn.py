"""Top-p inverse soft Q-learning: every knob against the loops, and what padding, extremes and masks must not do."""

import math
from typing import Any

import builders
import oracles_inverse
import pytest
import torch
from iq_learn_cases import GAUGES, KNOBS, bound, every_kind_of_step, knob_id, oracle


@pytest.fixture
def world() -> builders.World:
    return every_kind_of_step()


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(knobs: dict[str, Any]) -> None:
    seed = KNOBS.index(knobs)
    given_knobs = {"gamma": 0.9, "alpha": 1.5, "anchor_weight": 0.7, **knobs}
    made = builders.make_world(seed, lengths=(3, 2), finished=(True, seed % 2 == 0))
    builders.assert_equals_oracle(made, bound(**given_knobs), oracle(**given_knobs))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_equals_the_oracle_in_float32(world: builders.World, gauge: str, estimator: str) -> None:
    knobs = {"gamma": 0.9, "alpha": 1.5, "gauge": gauge, "estimator": estimator, "anchor": "tail", "q_min": -1.0}
    builders.assert_equals_oracle(world, bound(**knobs), oracle(**knobs), torch.float32)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 100.0])
def test_equals_the_oracle_over_gamma_and_alpha(world: builders.World, gamma: float, alpha: float) -> None:
    knobs = {"gamma": gamma, "alpha": alpha, "gauge": "max", "q_min": -10.0}
    builders.assert_equals_oracle(world, bound(gamma=gamma, alpha=alpha), oracle(**knobs))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("terminal", ["zero", "absorbing"])
def test_metrics_equal_the_oracle(world: builders.World, gauge: str, terminal: str) -> None:
    knobs = {"gamma": 0.9, "alpha": 1.5, "gauge": gauge, "terminal": terminal, "q_min": -1.0}
    metrics = bound(**knobs)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    for b, response in enumerate(world.responses()):
        for t, step in enumerate(oracles_inverse.iq_learn(response, **knobs)):
            q, reward = (math.nan if x is None else x.item() for x in (step.q, step.reward))
            want = {
                "td/q": q,
                "td/v": step.v.item(),
                "td/reward": reward,
                "td/bellman_error": reward**2,
                "td/off_support_fraction": float(response.tokens[t] not in response.candidates[t]),
                "td/clipped_fraction": step.clipped_fraction,
            }
            got = {key: x[b, t].item() for key, x in metrics.items()}
            assert got == pytest.approx(want, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
@pytest.mark.parametrize("anchor", ["none", "tail", "nll"])
def test_gradcheck(gauge: str, estimator: str, anchor: str) -> None:
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    builders.assert_gradcheck(made, bound(gauge=gauge, estimator=estimator, anchor=anchor, alpha=2.0, q_min=None))
