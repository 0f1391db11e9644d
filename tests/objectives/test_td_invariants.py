"""What every TD objective keeps, whatever its knobs: padding, masks, extremes, what it reads, and what a perfect student pays."""

import itertools
from dataclasses import replace
from typing import Any

import builders
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iq_learn_cases import GAUGES
from iq_learn_cases import KNOBS as IQ_LEARN
from pairwise import pairwise

from tdistill.objectives import bind

Case = tuple[str, dict[str, Any]]


def cases(name: str, **values: list[Any]) -> list[Case]:
    """Combinations of the values in which every two of them meet."""
    every = (dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values()))
    return [(name, knobs) for knobs in pairwise(every)]


ANCHORS, FREE, RHO = ["none", "tail", "nll"], ["none", "learned"], [None, 0.8, float("inf")]
REGRESSION = {"other": ["untaken", "rollouts"], "terminal": ["absorbing", "zero"], "gauge": FREE, "stop_target": [False, True]}
CASES: list[Case] = [
    *(("iq_learn", knobs) for knobs in IQ_LEARN),
    *cases("csil", gauge=FREE, stop_target=[True, False], anchor=ANCHORS, rho_max=RHO),
    *cases("q_lambda", gauge=FREE, stop_target=[True, False], anchor=ANCHORS, rho_max=RHO),
    *cases("path_consistency", gauge=GAUGES, max_n=[None, 2], anchor=ANCHORS),
    *cases("actor_critic", gamma=[0.0, 0.9], lambda_=[0.0, 0.7], rho_max=[0.8, float("inf")], support=["tail", "proj"]),
    *cases("actor_critic", gamma=[0.9], center=[0.7], support=["tail", "proj"]),
    *cases("mean_actor_critic", gamma=[0.0, 0.9], lambda_=[0.0, 0.7], center=[0.0, 1.0], support=["tail", "proj"]),
    *cases("minillm", gamma=[0.9, 1.0], length_normalization=[True, False], reward_clip=[None, 1.0], support=["tail", "proj"]),
    *cases("sqil", **REGRESSION, anchor=["none", "tail"]),
    *cases("ls_iq", **REGRESSION, anchor=["none", "nll"]),
    ("bd_released", {}),
]
DENSE = [*cases("actor_critic", support=["dense"]), *cases("mean_actor_critic", support=["dense"]), *cases("minillm", support=["dense"])]


def case_id(case: Case) -> str:
    return "-".join(map(str, (case[0], *case[1].values())))


def mixed() -> builders.World:
    """A cut-off, a response of the student, tokens on and off support."""
    return builders.make_world(seed=41, lengths=(4, 3, 3), finished=(False, True, True), expert=(True, True, False))


@pytest.mark.parametrize("case", CASES + DENSE, ids=case_id)
def test_reads_no_more_than_it_needs(case: Case) -> None:
    bound = bind(case[0], **case[1])
    lean, full = (builders.steps_of(mixed(), needs=needs) for needs in (bound.needs, builders.EVERY_NEED))
    assert torch.equal(bound(lean).loss_t, bound(full).loss_t)


@settings(max_examples=400, deadline=None)
@given(
    case=st.sampled_from(CASES + DENSE),
    made=builders.worlds(),
    pad_t=st.integers(0, 3),
    pad_k=st.integers(0, 3),
    junk=st.sampled_from([0.0, -90.0, 1e4]),
)
def test_padding_changes_nothing(case: Case, made: builders.World, pad_t: int, pad_k: int, junk: float) -> None:
    builders.assert_padding_invariant(made, bind(case[0], **case[1]), pad_t, pad_k, junk)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_masked_slots_get_no_gradient(case: Case) -> None:
    builders.assert_masked_gradient_is_zero(mixed(), bind(case[0], **case[1]))


@pytest.mark.parametrize("case", CASES + DENSE, ids=case_id)
def test_extreme_logits_stay_finite(case: Case) -> None:
    builders.assert_finite_at_extremes(bind(case[0], **case[1]), seeds=1)


FIXED_POINTS = [
    *cases("csil", gamma=[0.0, 0.9, 1.0], stop_target=[True, False], rho_max=RHO),
    *cases("q_lambda", lambda_=[0.0, 0.5, 1.0], stop_target=[True, False], rho_max=RHO),
    ("path_consistency", {"gamma": 0.0, "lambda_": 0.5}),
    ("path_consistency", {"gamma": 0.9, "lambda_": 0.5}),
    ("path_consistency", {"gamma": 1.0, "lambda_": 1.0}),
]


@pytest.mark.parametrize("p", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("case", FIXED_POINTS, ids=case_id)
def test_the_teacher_with_no_value_is_a_fixed_point(case: Case, p: float) -> None:
    """Fact 6: under the gauge ``learned`` it pays nothing, and nothing pulls it away."""
    made = builders.make_world(seed=3, lengths=(4, 3), finished=(True, False), p=p)
    made.logits.data.copy_(made.teacher_logp + 1.7)
    made.value.data.zero_()
    loss_t, *grads = builders.loss_and_grads(made, bind(case[0], **case[1]))
    assert all(x.abs().max() < 1e-12 for x in (loss_t, *grads))


@pytest.mark.parametrize("case", [("q_lambda", {"lambda_": 0.7}), ("path_consistency", {"lambda_": 0.7})], ids=case_id)
def test_p_1_is_the_same_over_the_vocabulary(case: Case) -> None:
    """With every token a candidate, a batch with K = V in the vocabulary's order gives the same loss and gradient."""
    made = builders.make_world(seed=5, lengths=(4, 2), finished=(True, False), p=1.0)
    objective = bind(case[0], **case[1])
    dense = builders.loss_and_grads(made, lambda steps: objective(replace(steps.dense, value_t=steps.value_t)))
    for a, b in zip(builders.loss_and_grads(made, objective), dense, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
