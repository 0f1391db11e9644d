"""Path consistency against the definition of every window, and trajectory balance, one step and the fixed point as its ends."""

import itertools
from dataclasses import replace
from typing import Any

import builders
import oracles
import oracles_returns
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from torch import Tensor

from tdistill.objectives import bind
from tdistill.objectives.parts.windows import window_length, window_weights
from tdistill.runtime.errors import ConfigError

GAUGES = ["none", "max", "max_support", "mean_support", "lse", "learned"]
KNOBS = pairwise(
    dict(zip(("gauge", "max_n", "anchor"), values, strict=True))
    for values in itertools.product(GAUGES, [None, 1, 2, 50], ["none", "tail", "nll"])
)


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(**knobs: Any) -> Any:
    return lambda response: [step.loss for step in oracles_returns.path_consistency(response, **knobs)]


def loss_of(world: builders.World, **knobs: Any) -> Tensor:
    return builders.loss_and_grads(world, bind("path_consistency", **knobs))[0]


@pytest.fixture
def world() -> builders.World:
    """Off-support tokens in the middle and at the end, and one cut-off."""
    return builders.make_world(seed=21, lengths=(6, 4, 2), finished=(True, False, True), p=0.8)


# --- the loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(world: builders.World, knobs: dict[str, Any]) -> None:
    given_knobs = {"gamma": 0.9, "lambda_": 0.6, "anchor_weight": 0.7, **knobs}
    builders.assert_equals_oracle(world, bind("path_consistency", **given_knobs), oracle(**given_knobs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("p", [0.5, 0.95, 1.0])
def test_equals_the_oracle_at_every_gamma_and_lambda(gamma: float, lambda_: float, p: float, dtype: torch.dtype) -> None:
    made = builders.make_world(seed=22, lengths=(5, 3, 1), finished=(True, False, True), p=p)
    builders.assert_equals_oracle(made, bind("path_consistency", gamma=gamma, lambda_=lambda_), oracle(gamma=gamma, lambda_=lambda_), dtype)


def test_metrics_equal_the_oracle(world: builders.World) -> None:
    metrics = bind("path_consistency", gamma=0.9, max_n=2)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    nan = float("nan")
    for b, response in enumerate(world.responses()):
        for t, step in enumerate(oracles_returns.path_consistency(response, gamma=0.9, lambda_=0.95, max_n=2)):
            want = {
                "td/q": nan if step.q is None else step.q.item(),
                "td/v": step.v.item(),
                "td/reward": nan if step.reward is None else step.reward,
                "td/bellman_error": nan if step.error is None else step.error.item() ** 2,
                "td/off_support_fraction": float(response.tokens[t] not in response.candidates[t]),
                "td/window": nan if step.window is None else step.window,
            }
            assert {key: x[b, t].item() for key, x in metrics.items()} == pytest.approx(want, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("gauge", GAUGES)
def test_gradcheck(gauge: str) -> None:
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    builders.assert_gradcheck(made, bind("path_consistency", gauge=gauge, lambda_=0.6, anchor="tail"))


# --- what it reduces to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gauge", ["learned", "lse"])
def test_gamma_1_and_lambda_1_is_trajectory_balance_of_every_suffix(gauge: str) -> None:
    """½(V_p(s_t) + Σ_{k≥t} log[proj_p π/proj_p π*])²; at t = 0 it is trajectory balance, with V_p(s_0) as log Z."""
    made = builders.make_world(seed=8, lengths=(5,), finished=(True,), off_support=0.0)
    response = made.responses()[0]
    ratios = [-oracles.proj_nll(response, t).item() - oracles_returns.reward(response, t) for t in range(5)]
    loss_t = loss_of(made, gamma=1.0, lambda_=1.0, gauge=gauge)[0]
    for t in range(5):
        v = oracles_returns.state_value(response, t, gauge).item()
        assert loss_t[t].item() == pytest.approx(0.5 * (v + sum(ratios[t:])) ** 2, abs=1e-9)


@pytest.mark.parametrize("one_step", [{"max_n": 1}, {"lambda_": 0.0}, {"max_n": 1, "lambda_": 1.0}], ids=str)
@pytest.mark.parametrize("gauge", ["none", "learned"])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_one_step_is_csil_with_the_whole_gradient(world: builders.World, one_step: dict[str, Any], gauge: str, gamma: float) -> None:
    ours = builders.loss_and_grads(world, bind("path_consistency", gamma=gamma, gauge=gauge, **one_step))
    theirs = builders.loss_and_grads(world, bind("csil", gamma=gamma, gauge=gauge, stop_target=False))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("lambda_", [0.3, 1.0])
def test_gamma_0_never_looks_ahead(world: builders.World, lambda_: float) -> None:
    """Every window then has the error of its first step, and the weights sum to 1."""
    for a, b in zip(
        builders.loss_and_grads(world, bind("path_consistency", gamma=0.0, lambda_=lambda_)),
        builders.loss_and_grads(world, bind("csil", gamma=0.0)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_end_before_a_step_that_does_not_count() -> None:
    counts = torch.tensor([[True, True, False, True], [False, False, False, False], [True, True, True, True]])
    assert window_length(counts, 4).tolist() == [[2, 1, 0, 1], [0, 0, 0, 0], [4, 3, 2, 1]]
    assert window_length(counts, 2).tolist() == [[2, 1, 0, 1], [0, 0, 0, 0], [2, 2, 2, 1]]


@settings(max_examples=50, deadline=None)
@given(lambda_=st.floats(0.0, 1.0), longest=st.integers(1, 6))
def test_the_weights_of_a_step_sum_to_1(lambda_: float, longest: int) -> None:
    lengths = torch.arange(longest + 1).unsqueeze(0)
    weights = torch.stack([window_weights(lengths, lambda_, n, torch.float64)[0] for n in range(1, longest + 1)], -1)
    assert weights[0].eq(0).all()
    assert weights[1:].sum(-1).tolist() == pytest.approx([1.0] * longest, abs=1e-12)
    assert weights.ge(0).all()


@pytest.mark.parametrize("max_n", [None, 3])
def test_a_window_across_an_off_support_token_or_past_a_cut_off_does_not_exist(max_n: int | None) -> None:
    """Its state ends the windows before it, and nothing later reaches them."""
    made = builders.make_world(seed=9, lengths=(5,), finished=(False,), off_support=0.0)
    inside = made.responses()[0].candidates[2]
    tokens = made.tokens.clone()
    tokens[0, 2] = next(a for a in range(made.logits.shape[-1]) if a not in inside)
    off = replace(made, tokens=tokens)
    out = bind("path_consistency", max_n=max_n)(builders.steps_of(off))
    assert out.metrics["td/window"][0].nan_to_num().tolist() == [2, 1, 0, 1, 0]
    assert out.loss_t[0].eq(0).tolist() == [False, False, True, False, True]
    grad, grad_v = torch.autograd.grad(out.loss_t[0, 0], (made.logits, made.value))
    assert grad[0, 2:].abs().max() < 1e-12
    assert grad_v[0].ne(0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("knobs", [{"max_n": 0}, {"max_n": -1}, {"lambda_": 1.5}, {"gamma": 1.01}], ids=str)
def test_arguments_out_of_range_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(knobs))):
        bind("path_consistency", **knobs)


def test_a_response_of_512_tokens_equals_its_sums_of_errors() -> None:
    made = builders.make_world(seed=1, lengths=(512,), finished=(True,), vocab=4, p=1.0)
    ours = loss_of(made, gamma=1.0, lambda_=1.0)[0]
    steps = oracles_returns.td_steps(made.responses()[0], 1.0, "learned", "none", 1.0)
    errors = torch.stack([step.error for step in steps]).detach()
    torch.testing.assert_close(ours, 0.5 * errors.flip(0).cumsum(0).flip(0).square(), atol=1e-9, rtol=1e-9)


# --- memory ----------------------------------------------------------------------------------------------------------


def kept_for_the_gradient(made: builders.World, **knobs: Any) -> list[int]:
    """Sizes of the tensors that autograd keeps for the loss."""
    steps, sizes = builders.steps_of(made), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        bind("path_consistency", **knobs)(steps)
    return sizes


@pytest.mark.parametrize("max_n", [None, 64, 500])
def test_memory_grows_with_the_length_and_not_with_its_square(max_n: int | None) -> None:
    """No tensor of T·N elements, and of all that is kept together O(T): four times the text keeps four times as much."""
    totals = {}
    for length in (512, 2048):
        made = builders.make_world(seed=1, lengths=(length,), finished=(True,), vocab=4, p=1.0)
        sizes = kept_for_the_gradient(made, gamma=0.99, lambda_=0.9, max_n=max_n)
        assert max(sizes) <= 4 * length + 4
        totals[length] = sum(sizes)
    assert totals[2048] < 4.5 * totals[512]
    assert totals[2048] < 100 * 2048


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 1.0), (0.99, 0.95), (0.9, 0.0), (1.0, 0.5)])
def test_whole_responses_and_a_longest_window_equal_the_oracle(gamma: float, lambda_: float) -> None:
    """The two ways to compute it, on off-support tokens and cut-offs."""
    for seed in range(4):
        made = builders.make_world(seed=seed, lengths=(9, 8, 7), finished=(True, False, True), p=0.9, off_support=0.15)
        for max_n in (3, 8, 9, None):
            knobs = {"gamma": gamma, "lambda_": lambda_, "max_n": max_n}
            builders.assert_equals_oracle(made, bind("path_consistency", **knobs), oracle(**knobs))


@pytest.mark.parametrize("max_n", [None, 7])
def test_no_rounding_makes_a_long_window_negative(max_n: int | None) -> None:
    """Errors of ±1e4 whose sums cancel: a difference of squares would be off by 10 and more in float32."""
    made = builders.make_world(seed=3, lengths=(64,), finished=(True,), vocab=4, p=1.0)
    value = 1e4 * torch.sign(made.value.detach())
    for gamma, lambda_ in ((1.0, 1.0), (1.0, 0.9), (0.99, 0.95)):
        moved = replace(made, value=value.clone().requires_grad_())
        loss = bind("path_consistency", gamma=gamma, lambda_=lambda_, max_n=max_n)
        ours = builders.loss_and_grads(moved, loss, dtype=torch.float32)[0]
        truth = builders.loss_and_grads(moved, loss)[0]
        assert ours.ge(0).all()
        torch.testing.assert_close(ours.double(), truth, atol=1e-5 * truth.max().item(), rtol=1e-4)
