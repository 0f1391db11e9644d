"""Values of later states from a target network: against the loops, and what it must not touch."""

from dataclasses import replace
from typing import Any

import builders
import oracles_inverse
import oracles_returns
import pytest
import torch

from tdistill.objectives import bind


def losses(steps: list[oracles_returns.TdStep]) -> list[torch.Tensor]:
    return [step.loss for step in steps]


ORACLES: dict[str, Any] = {
    "csil": lambda response, **knobs: losses(oracles_returns.csil(response, **knobs)),
    "q_lambda": lambda response, **knobs: losses(oracles_returns.q_lambda(response, **knobs)),
    "sqil": oracles_inverse.sqil,
    "ls_iq": oracles_inverse.ls_iq,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("csil", {"gamma": 0.9, "anchor": "tail"}),
    ("csil", {"gamma": 0.9, "rho_max": 1.5}),
    ("q_lambda", {"gamma": 0.9, "lambda_": 0.7}),
    ("q_lambda", {"gamma": 0.9, "lambda_": 0.7, "rho_max": float("inf")}),
    ("q_lambda", {"gamma": 0.9, "lambda_": 0.7, "stop_target": False, "gauge": "none"}),
    ("sqil", {"gamma": 0.9}),
    ("sqil", {"gamma": 0.9, "gauge": "learned", "other": "rollouts"}),
    ("ls_iq", {"gamma": 0.9, "c": 0.5}),
    ("ls_iq", {"gamma": 0.9, "c": 4.0, "gauge": "learned", "stop_target": False}),
]


@pytest.fixture
def worlds() -> tuple[builders.World, builders.World]:
    """The student's batch, and the same text under other weights."""
    online = builders.make_world(seed=41, lengths=(4, 3, 3), finished=(False, True, True), expert=(True, True, False))
    other = builders.make_world(seed=42, lengths=(4, 3, 3), finished=(False, True, True), expert=(True, True, False))
    target = replace(online, logits=other.logits.detach(), value=other.value.detach())
    return online, target


@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_equals_the_oracle_with_its_value_and_no_gradient(name: str, knobs: dict[str, Any], worlds: Any) -> None:
    online, target = worlds
    bound = bind(name, target_network=True, **knobs)
    assert "target" in bound.needs
    ours = builders.loss_and_grads(online, lambda steps: bound(replace(steps, target=builders.steps_of(target))))
    pairs = list(zip(online.responses(), target.responses(), strict=True))
    loss_t, total = torch.zeros_like(ours[0]), 0.0 * (online.logits.sum() + online.value.sum())
    for b, (response, same_text) in enumerate(pairs):
        for t, scalar in enumerate(ORACLES[name](response, target_network=same_text, **knobs)):
            loss_t[b, t] = scalar.item()
            total = total + scalar
    truth = (loss_t, *torch.autograd.grad(total, (online.logits, online.value)))
    for got, want in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_a_target_equal_to_the_student_is_a_stopped_target(name: str, knobs: dict[str, Any], worlds: Any) -> None:
    online, _ = worlds
    same = builders.steps_of(replace(online, logits=online.logits.detach(), value=online.value.detach()))
    with_network = bind(name, target_network=True, **knobs)
    ours = builders.loss_and_grads(online, lambda steps: with_network(replace(steps, target=same)))
    stopped = builders.loss_and_grads(online, bind(name, **{**knobs, "stop_target": True}))
    for got, want in zip(ours, stopped, strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
