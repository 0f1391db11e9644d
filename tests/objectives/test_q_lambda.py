"""Q(λ) against its recursion, its two ends, its fixed point, and where the trace is cut."""

import itertools
from dataclasses import replace
from typing import Any

import builders
import oracles
import oracles_returns
import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError

INF = float("inf")
KNOBS = pairwise(
    dict(zip(("gauge", "stop_target", "anchor"), values, strict=True))
    for values in itertools.product(["none", "learned"], [True, False], ["none", "tail", "nll"])
)

WEIGHED = pairwise(
    dict(zip(("gauge", "stop_target", "gamma", "lambda_", "rho_max"), values, strict=True))
    for values in itertools.product(["none", "learned"], [True, False], [0.0, 0.9, 1.0], [0.0, 0.6, 1.0], [None, 0.5, 1.0, INF])
)


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(**knobs: Any) -> Any:
    return lambda response: [step.loss for step in oracles_returns.q_lambda(response, **knobs)]


def loss_of(world: builders.World, **knobs: Any) -> Tensor:
    return builders.loss_and_grads(world, bind("q_lambda", **knobs))[0]


@pytest.fixture
def world() -> builders.World:
    """Off-support tokens in the middle and at the end, and one cut-off."""
    return builders.make_world(seed=21, lengths=(6, 4, 2), finished=(True, False, True), p=0.8)


def off_support(made: builders.World, t: int) -> builders.World:
    inside = made.responses()[0].candidates[t]
    tokens = made.tokens.clone()
    tokens[0, t] = next(a for a in range(made.logits.shape[-1]) if a not in inside)
    return replace(made, tokens=tokens)


# --- the loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("gamma", "lambda_"), [(0.0, 0.5), (0.9, 0.0), (0.9, 0.6), (0.9, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(world: builders.World, knobs: dict[str, Any], gamma: float, lambda_: float, dtype: torch.dtype) -> None:
    given_knobs = {"gamma": gamma, "lambda_": lambda_, "anchor_weight": 0.7, **knobs}
    builders.assert_equals_oracle(world, bind("q_lambda", **given_knobs), oracle(**given_knobs), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("knobs", WEIGHED, ids=knob_id)
def test_weighed_by_the_importance_ratio_it_equals_the_oracle(world: builders.World, knobs: dict[str, Any], dtype: torch.dtype) -> None:
    world.behaviour_logp[0, 2] = torch.nan
    builders.assert_equals_oracle(world, bind("q_lambda", **knobs), oracle(**knobs), dtype)


@pytest.mark.parametrize("gauge", ["none", "learned"])
def test_gradcheck(gauge: str) -> None:
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    builders.assert_gradcheck(made, bind("q_lambda", gauge=gauge, stop_target=False, lambda_=0.6))


# --- what it reduces to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_lambda_0_is_csil_exactly(world: builders.World, gamma: float, knobs: dict[str, Any]) -> None:
    pair = bind("q_lambda", gamma=gamma, lambda_=0.0, **knobs), bind("csil", gamma=gamma, **knobs)
    for a, b in zip(*(builders.loss_and_grads(world, objective) for objective in pair), strict=True):
        assert torch.equal(a, b)
    ours, theirs = (objective(builders.steps_of(world)).metrics for objective in pair)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key].nan_to_num(), theirs[key].nan_to_num()) for key in ours)


@pytest.mark.parametrize("rho_max", [0.5, INF])
def test_weighed_with_lambda_0_is_csil_weighed_exactly(world: builders.World, rho_max: float) -> None:
    pair = bind("q_lambda", lambda_=0.0, rho_max=rho_max), bind("csil", rho_max=rho_max)
    for a, b in zip(*(builders.loss_and_grads(world, objective) for objective in pair), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_gamma_0_is_csil_too(world: builders.World, lambda_: float) -> None:
    assert torch.equal(loss_of(world, gamma=0.0, lambda_=lambda_), builders.loss_and_grads(world, bind("csil", gamma=0.0))[0])


@pytest.mark.parametrize("gauge", ["none", "learned"])
@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_lambda_1_is_monte_carlo(gauge: str, gamma: float) -> None:
    """All on support: G_t = r_t + Σ_{k≥1} γ^k (r_{t+k} − log proj_p π(a_{t+k})), with no bootstrapped value at all."""
    made = builders.make_world(seed=8, lengths=(5,), finished=(True,), off_support=0.0)
    response = made.responses()[0]
    r = [oracles_returns.reward(response, t) for t in range(5)]
    log_pi = [-oracles.proj_nll(response, t).item() for t in range(5)]
    steps = oracles_returns.csil(response, gamma=gamma, gauge=gauge)
    loss_t = loss_of(made, gamma=gamma, lambda_=1.0, gauge=gauge)[0]
    for t in range(5):
        g = r[t] + sum(gamma**k * (r[t + k] - log_pi[t + k]) for k in range(1, 5 - t))
        assert loss_t[t].item() == pytest.approx(0.5 * (steps[t].q.item() - g) ** 2, abs=1e-9)


def test_lambda_1_never_reads_a_value_on_the_way() -> None:
    """The values of later states cancel from the target of step 0 under λ = 1, and not under λ < 1."""
    made = builders.make_world(seed=8, lengths=(4,), finished=(True,), off_support=0.0)
    for lambda_, blind in ((1.0, True), (0.5, False)):
        loss_t = bind("q_lambda", lambda_=lambda_, stop_target=False)(builders.steps_of(made)).loss_t
        (grad,) = torch.autograd.grad(loss_t[0, 0], made.value)
        assert (grad[0, 1:].abs() < 1e-12).all() == blind


# --- conventions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho_max", [None, INF])
def test_the_trace_is_cut_before_an_off_support_token(rho_max: float | None) -> None:
    """Step 1 off support: step 0 bootstraps from its state as under λ = 0, and nothing later reaches it."""
    made = off_support(builders.make_world(seed=9, lengths=(4,), finished=(True,), off_support=0.0), t=1)
    ours, one_step = (loss_of(made, lambda_=lambda_, rho_max=rho_max)[0] for lambda_ in (1.0, 0.0))
    assert ours[0] == one_step[0]
    assert ours[1] == 0
    assert ours[2] != one_step[2]
    assert ours[3] == one_step[3]  # the last step of a finished response has nothing ahead


@pytest.mark.parametrize("rho_max", [None, INF])
def test_the_trace_is_cut_at_the_end_of_a_cut_off(rho_max: float | None) -> None:
    made = builders.make_world(seed=10, lengths=(4,), finished=(False,), off_support=0.0)
    ours, one_step = (loss_of(made, lambda_=lambda_, rho_max=rho_max)[0] for lambda_ in (1.0, 0.0))
    assert ours[3] == 0
    assert ours[2] == one_step[2] != 0
    assert ours[1] != one_step[1]


@pytest.mark.parametrize("lambda_", [-0.1, 1.1, float("nan")])
def test_lambda_outside_0_1_is_refused(lambda_: float) -> None:
    with pytest.raises(ConfigError, match="lambda_"):
        bind("q_lambda", lambda_=lambda_)


def test_a_gauge_that_binds_the_value_to_the_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"q_lambda.*gauge"):
        bind("q_lambda", gauge="max")
