"""Coherent soft imitation learning against the loops, its fixed point, its reductions and its conventions."""

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
KNOBS = [
    dict(zip(("gauge", "stop_target", "anchor"), values, strict=True))
    for values in itertools.product(["none", "learned"], [True, False], ["none", "tail", "nll"])
]

WEIGHED = pairwise(
    dict(zip(("gauge", "stop_target", "anchor", "gamma", "rho_max"), values, strict=True))
    for values in itertools.product(["none", "learned"], [True, False], ["none", "tail", "nll"], [0.0, 0.9, 1.0], [None, 0.5, 1.0, INF])
)


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(**knobs: Any) -> Any:
    return lambda response: [step.loss for step in oracles_returns.csil(response, **knobs)]


def loss_of(world: builders.World, **knobs: Any) -> Tensor:
    return builders.loss_and_grads(world, bind("csil", **knobs))[0]


@pytest.fixture
def world() -> builders.World:
    return builders.make_world(seed=21, lengths=(4, 3, 2), finished=(True, False, True), p=0.8)


@pytest.fixture
def other_writer(world: builders.World) -> builders.World:
    """The same text, written by another policy, but for one token that nobody sampled."""
    world.behaviour_logp[0, 1] = torch.nan
    return world


# --- the loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(world: builders.World, knobs: dict[str, Any], gamma: float, dtype: torch.dtype) -> None:
    given_knobs = {"gamma": gamma, "anchor_weight": 0.7, **knobs}
    builders.assert_equals_oracle(world, bind("csil", **given_knobs), oracle(**given_knobs), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("knobs", WEIGHED, ids=knob_id)
def test_weighed_by_the_importance_ratio_it_equals_the_oracle(other_writer: builders.World, knobs: dict[str, Any], dtype: torch.dtype) -> None:
    builders.assert_equals_oracle(other_writer, bind("csil", **knobs), oracle(**knobs), dtype)


def test_metrics_equal_the_oracle(world: builders.World) -> None:
    metrics = bind("csil", gamma=0.9)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    for b, response in enumerate(world.responses()):
        for t, step in enumerate(oracles_returns.csil(response, gamma=0.9)):
            error = float("nan") if step.error is None else step.error.item()
            want = {
                "td/q": float("nan") if step.q is None else step.q.item(),
                "td/v": step.v.item(),
                "td/reward": float("nan") if step.reward is None else step.reward,
                "td/bellman_error": error**2,
                "td/off_support_fraction": float(response.tokens[t] not in response.candidates[t]),
            }
            assert {key: x[b, t].item() for key, x in metrics.items()} == pytest.approx(want, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("rho_max", [0.5, INF])
def test_the_metric_of_the_ratio_equals_the_oracle_where_a_step_counts(other_writer: builders.World, rho_max: float) -> None:
    metrics = bind("csil", rho_max=rho_max)(builders.steps_of(other_writer)).metrics
    for b, response in enumerate(other_writer.responses()):
        for t, rho in enumerate(oracles_returns.td_weights(response, rho_max)):
            want = rho if oracles_returns.counts(response, t) else float("nan")
            assert metrics["td/rho"][b, t].item() == pytest.approx(want, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("gauge", ["none", "learned"])
@pytest.mark.parametrize("anchor", ["none", "tail", "nll"])
def test_gradcheck(gauge: str, anchor: str) -> None:
    """Of the loss with the whole gradient; a stopped target has one on purpose that finite differences don't."""
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    builders.assert_gradcheck(made, bind("csil", gauge=gauge, anchor=anchor, stop_target=False))


# --- what it reduces to ----------------------------------------------------------------------------------------------


def test_a_perfect_policy_with_a_wrong_value_pays_its_inconsistency() -> None:
    """Under π = π* what is left is ½(v_t − γv_{t+1})²."""
    made = builders.make_world(seed=4, lengths=(3,), finished=(True,), off_support=0.0)
    made.logits.data.copy_(made.teacher_logp)
    v = torch.cat([made.value.detach()[0], torch.zeros(1)])
    torch.testing.assert_close(loss_of(made, gamma=0.9)[0], 0.5 * (v[:-1] - 0.9 * v[1:]).square(), atol=1e-12, rtol=0)


def test_gamma_0_is_a_regression_of_the_log_probability(world: builders.World) -> None:
    """γ = 0: ½(Q − log proj_p π*)², with the same gradient whether the target is stopped or not; no later state enters."""
    stopped, whole = (builders.loss_and_grads(world, bind("csil", gamma=0.0, stop_target=s)) for s in (True, False))
    for a, b in zip(stopped, whole, strict=True):
        assert torch.equal(a, b)
    made = builders.make_world(seed=1, lengths=(3,), finished=(True,), off_support=0.0)
    for gamma, blind in ((0.0, True), (0.5, False)):
        loss_t = bind("csil", gamma=gamma, stop_target=False)(builders.steps_of(made)).loss_t
        grad, grad_v = torch.autograd.grad(loss_t[0, 0], (made.logits, made.value))
        assert grad[0, 0].ne(0).any()
        assert grad_v[0, 1].eq(0) == blind
        assert grad_v[0, 2] == 0


def test_p_1_is_soft_q_learning_over_the_vocabulary() -> None:
    made = builders.make_world(seed=5, lengths=(3,), finished=(True,), p=1.0)
    v = torch.cat([made.logits.detach().logsumexp(-1)[0], torch.zeros(1)])
    q, r = (x.detach().gather(-1, made.tokens.unsqueeze(-1))[0, :, 0] for x in (made.logits, made.teacher_logp))
    want = 0.5 * (q - r - 0.9 * v[1:]).square()
    torch.testing.assert_close(loss_of(made, gamma=0.9, gauge="none")[0], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["csil", "q_lambda"])
@pytest.mark.parametrize("rho_max", [1.0, 3.0, INF])
def test_on_the_students_own_text_and_on_human_text_the_weight_is_1(world: builders.World, name: str, rho_max: float) -> None:
    log_pi = world.logits.detach().log_softmax(-1).gather(-1, world.tokens.unsqueeze(-1)).squeeze(-1)
    unweighed = builders.loss_and_grads(world, bind(name))
    for behaviour_logp in (log_pi, torch.full_like(log_pi, torch.nan)):
        weighed = builders.loss_and_grads(replace(world, behaviour_logp=behaviour_logp), bind(name, rho_max=rho_max))
        for a, b in zip(weighed, unweighed, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["csil", "q_lambda"])
def test_the_weight_alone_needs_the_data_s_policy(name: str) -> None:
    assert bind(name).needs == {"value"}
    assert bind(name, rho_max=1.0).needs == {"value", "taken", "log_z", "behaviour"}
    assert bind(name, rho_max=INF, gauge="none", target_network=True).needs == {"target", "taken", "log_z", "behaviour"}
    assert "td/rho" not in bind(name)(builders.steps_of(builders.make_world())).metrics


@pytest.mark.parametrize("name", ["csil", "q_lambda"])
@pytest.mark.parametrize("rho_max", [0.0, -1.0, float("nan")])
def test_a_largest_weight_that_is_not_positive_is_refused(name: str, rho_max: float) -> None:
    with pytest.raises(ConfigError, match="rho_max"):
        bind(name, rho_max=rho_max)


def test_a_stopped_target_never_reaches_the_next_state() -> None:
    made = builders.make_world(seed=6, lengths=(2,), finished=(True,), off_support=0.0)
    for stop, blind in ((True, True), (False, False)):
        loss_t = bind("csil", gauge="none", stop_target=stop)(builders.steps_of(made)).loss_t
        (grad,) = torch.autograd.grad(loss_t[0, 0], made.logits)
        assert grad[0, 0].ne(0).any()
        assert grad[0, 1].eq(0).all() == blind


# --- conventions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho_max", [None, 1.0, INF])
def test_steps_off_support_and_the_end_of_a_cut_off_pay_nothing_and_serve_the_one_before(rho_max: float | None) -> None:
    made = builders.make_world(seed=7, lengths=(3,), finished=(False,), off_support=0.0)
    inside = made.responses()[0].candidates[1]
    tokens = made.tokens.clone()
    tokens[0, 1] = next(a for a in range(made.logits.shape[-1]) if a not in inside)
    off = replace(made, tokens=tokens)
    assert loss_of(made, rho_max=rho_max)[0].ne(0).tolist() == [True, True, False]
    assert loss_of(off, rho_max=rho_max)[0].ne(0).tolist() == [True, False, False]
    assert loss_of(off, rho_max=rho_max)[0, 0] == loss_of(made, rho_max=rho_max)[0, 0]
    loss_t = bind("csil", stop_target=False, rho_max=rho_max)(builders.steps_of(off)).loss_t
    assert torch.autograd.grad(loss_t[0, 0], made.value)[0][0, 1] != 0
    assert loss_of(replace(made, finished=(True,)), rho_max=rho_max)[0, 2] != 0


@pytest.mark.parametrize("gauge", ["max", "lse", "max_support", "mean_support"])
def test_a_gauge_that_binds_the_value_to_the_policy_is_refused(gauge: str) -> None:
    with pytest.raises(ConfigError, match=r"csil.*gauge.*'none' or 'learned'"):
        bind("csil", gauge=gauge)


@pytest.mark.parametrize("anchor", ["tail", "nll"])
def test_the_anchor_holds_every_step(world: builders.World, anchor: str) -> None:
    added = loss_of(world, anchor=anchor, anchor_weight=2.0) - loss_of(world)
    for b, response in enumerate(world.responses()):
        for t in range(len(response)):
            assert added[b, t].item() == pytest.approx(2.0 * oracles.anchor_term(response, t, anchor).item(), abs=1e-9)
