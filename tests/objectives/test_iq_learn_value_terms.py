"""``value_term`` and ``phi_on``: the initial value, mixed data, and where the curvature of χ² applies."""

import itertools
import math
from dataclasses import replace
from typing import Any

import builders
import oracles_inverse
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from iq_learn_cases import bound, every_kind_of_step, knob_id, loss_of, oracle
from pairwise import pairwise

from tdistill.objectives.parts.value_term import discount_weights
from tdistill.runtime.errors import ConfigError

PHIS = ["chi2", "hellinger", "kl", "js", "tv", "linear"]
TERMS = ["value_expert", "v0", "value_mix"]
GAMMAS = [0.0, 0.6, 0.99, 1.0]
KNOBS = pairwise(
    {"value_term": value_term, "phi_on": phi_on, "phi": phi, "terminal": terminal, "estimator": estimator, "gauge": gauge, "anchor": anchor}
    for value_term, (phi_on, phi), terminal, estimator, (gauge, anchor) in itertools.product(
        TERMS,
        [("expert", "chi2"), ("all", "chi2"), ("expert", "js"), ("expert", "linear")],
        ["zero", "absorbing"],
        ["sampled", "expected"],
        [("max", "none"), ("lse", "tail"), ("learned", "nll")],
    )
    if terminal == "zero" or phi == "chi2"
)
# What no lower bound forbids: ``value_mix`` with φ on the expert's steps alone is for a Q that is bounded on both sides.
FLOOR = -50.0  # below every Q of the batches here
KNOBS = [
    knobs | ({"q_min": FLOOR} if knobs["gauge"] != "learned" else {"gauge": "max_support"})
    if (knobs["value_term"], knobs["phi_on"]) == ("value_mix", "expert")
    else knobs
    for knobs in KNOBS
]


@pytest.fixture
def world() -> builders.World:
    """As ``every_kind_of_step``, the last response written by the student."""
    return replace(every_kind_of_step(), expert=(True, True, False))


@pytest.fixture
def whole() -> builders.World:
    """Finished responses of the expert, every token on support."""
    return builders.make_world(seed=31, lengths=(4, 1, 3), finished=(True, True, True), off_support=0.0)


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(knobs: dict[str, Any]) -> None:
    seed = KNOBS.index(knobs)
    given_knobs = {"gamma": 0.9, "alpha": 1.5, "anchor_weight": 0.7, "q_min": None, **knobs}
    made = builders.make_world(seed, lengths=(3, 2, 2), finished=(True, seed % 2 == 0, True), expert=(True, True, False))
    builders.assert_equals_oracle(made, bound(**given_knobs), oracle(**given_knobs))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("value_term", TERMS)
def test_equals_the_oracle_over_gamma(world: builders.World, gamma: float, value_term: str) -> None:
    knobs: dict[str, Any] = {"gamma": gamma, "alpha": 2.0, "value_term": value_term, "gauge": "lse", "q_min": -1.0}
    builders.assert_equals_oracle(world, bound(**knobs), oracle(**knobs))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_discount_weights_have_mean_one(world: builders.World, gamma: float) -> None:
    weight_t = discount_weights(builders.steps_of(world, pad_t=2).mask_t, gamma, torch.float64)
    for b, n in enumerate(world.lengths):
        want = [oracles_inverse.discount_weight(n, t, gamma) for t in range(n)]
        assert weight_t[b].tolist() == pytest.approx(want + [0.0] * (weight_t.shape[1] - n), abs=1e-12)
        assert weight_t[b].sum().item() == pytest.approx(n, abs=1e-12)
    if gamma == 0.0:
        assert torch.equal(weight_t[:, 0], torch.tensor(world.lengths, dtype=torch.float64))
        assert weight_t[:, 1:].eq(0).all()


def test_discount_weights_near_one_do_not_cancel() -> None:
    mask_t = torch.ones(1, 300, dtype=torch.bool)
    weight_t = discount_weights(mask_t, 1.0 - 1e-12, torch.float32)
    torch.testing.assert_close(weight_t, torch.ones(1, 300), atol=1e-6, rtol=0)
    assert discount_weights(~mask_t, 0.9, torch.float32).eq(0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("gauge", ["max", "lse", "learned"])
def test_v0_is_value_expert_under_the_discount_weights(broken: builders.World, gamma: float, phi: str, gauge: str) -> None:
    """Σ_t γ^t (V_t − γV_{t+1}) over each run of counted steps: per response, in value and in gradient, when V(terminal) = 0."""
    knobs: dict[str, Any] = {"gamma": gamma, "phi": phi, "gauge": gauge, "alpha": 1.3}
    steps = builders.steps_of(broken)
    weighted_t = discount_weights(steps.mask_t, gamma, torch.float64) * bound(**knobs)(steps).loss_t
    v0_t = bound(value_term="v0", **knobs)(steps).loss_t
    weighted, v0 = (torch.where(steps.mask_t, x, 0.0).sum(-1) for x in (weighted_t, v0_t))
    torch.testing.assert_close(v0, weighted, atol=1e-9, rtol=1e-9)
    leaves = (broken.logits, broken.value)
    for b in range(len(broken.lengths)):
        grads = (torch.autograd.grad(x[b], leaves, retain_graph=True, allow_unused=True, materialize_grads=True) for x in (v0, weighted))
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


@pytest.fixture
def broken() -> builders.World:
    """The expert's responses: whole, with a first token off support, one inside, one at the end, cut off, cut off after one token."""
    made = builders.make_world(seed=33, lengths=(4, 3, 5, 3, 4, 1), finished=(True, True, True, True, False, False), off_support=0.0)
    tokens = made.tokens.clone()
    for b, t in ((1, 0), (2, 2), (3, 2)):
        inside = made.responses()[b].candidates[t]
        tokens[b, t] = next(a for a in range(made.logits.shape[-1]) if a not in inside)
    return replace(made, tokens=tokens)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("gauge", ["none", "learned", "lse", "max", "mean_support"])
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_v0_has_a_lower_bound_where_steps_do_not_count(broken: builders.World, phi: str, gauge: str, estimator: str) -> None:
    """Descent, and values of all states that sink or rise together, reward for reward, never take a response below 0."""
    loss = bound(value_term="v0", phi=phi, gauge=gauge, estimator=estimator, gamma=0.9, alpha=0.5, q_min=None)

    def totals(made: builders.World) -> torch.Tensor:
        return builders.loss_and_grads(made, loss)[0].sum(-1)

    for size in (1e2, -1e2, 1e4, -1e4):
        shift = size * 0.9 ** -torch.arange(5.0, dtype=torch.float64)  # r_t = Q − γV' stays where it is
        for only in (None, 0, 1, 2, 3):
            by_state = shift if only is None else torch.where(torch.arange(5) == only, shift, 0.0)
            moved = replace(
                broken,
                logits=(broken.logits.detach() + by_state[:, None]).requires_grad_(),
                value=(broken.value.detach() + by_state).requires_grad_(),
            )
            assert totals(moved).min() > -1e-6, (size, only)
    made = replace(broken, logits=broken.logits.detach().clone().requires_grad_(), value=broken.value.detach().clone().requires_grad_())
    for _ in range(60):
        _, *grads = builders.loss_and_grads(made, loss)
        for leaf, grad in zip((made.logits, made.value), grads, strict=True):
            leaf.data -= 0.5 * grad / grad.abs().max().clamp(min=1.0)
    assert totals(made).min() > -1e-9


@pytest.mark.parametrize("gauge", ["none", "learned", "lse", "max", "mean_support"])
def test_value_mix_without_a_lower_bound_is_refused(gauge: str) -> None:
    with pytest.raises(ConfigError, match="no lower bound"):
        bound(value_term="value_mix", gauge=gauge, q_min=None)
    with pytest.raises(ConfigError, match="no lower bound"):
        bound(value_term="value_mix", gauge=gauge, q_min=None, phi_on="all", alpha=float("inf"))
    assert bound(value_term="value_mix", gauge=gauge, q_min=None, phi_on="all")


@pytest.mark.parametrize(
    "knobs",
    [
        *({"gauge": gauge, "phi_on": "all", "q_min": None} for gauge in ("none", "learned", "lse", "max", "mean_support", "max_support")),
        *({"gauge": gauge, "q_min": -10.0} for gauge in ("lse", "max")),
        {"gauge": "max_support", "q_min": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_value_mix_has_a_lower_bound_at_every_step(broken: builders.World, knobs: dict[str, Any], estimator: str) -> None:
    """−α where the curvature holds it; elsewhere the range of V, between q_min (or 0) and log |A_p|, or 0 under ``lse``."""
    made, alpha = replace(broken, expert=(True, False, False, True, False, False)), 0.5
    floor = -alpha if knobs.get("phi_on") else min(knobs["q_min"] or 0.0, 0.0) - 1.0
    loss = bound(value_term="value_mix", estimator=estimator, gamma=0.9, alpha=alpha, **knobs)
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        size = 10.0 ** (seed % 5)
        logits, value = (size * torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (made.logits, made.value))
        moved = replace(made, logits=logits.requires_grad_(), value=value.requires_grad_())
        assert builders.loss_and_grads(moved, loss)[0].min() > floor - math.log(5)


def test_v0_sees_the_value_of_the_first_state_alone(whole: builders.World) -> None:
    """With φ linear at γ = 0 it is T times cloning at the first step, and nothing later."""
    loss_t = loss_of(whole, value_term="v0", phi="linear", gamma=0.0, q_min=None)
    cloning = loss_of(whole, phi="linear", gamma=0.0, q_min=None)
    torch.testing.assert_close(loss_t[:, 0], cloning[:, 0] * torch.tensor(whole.lengths), atol=1e-9, rtol=0)
    assert loss_t[:, 1:].eq(0).all()


@pytest.mark.parametrize("phi_on", ["expert", "all"])
@pytest.mark.parametrize("terminal", ["zero", "absorbing"])
def test_on_the_experts_data_value_mix_is_value_expert(phi_on: str, terminal: str) -> None:
    made, knobs = every_kind_of_step(), {"gamma": 0.9, "alpha": 2.0, "terminal": terminal}
    mixed = builders.loss_and_grads(made, bound(value_term="value_mix", phi_on=phi_on, **knobs))
    for got, want in zip(mixed, builders.loss_and_grads(made, bound(**knobs)), strict=True):
        assert torch.equal(got, want)


def test_value_mix_on_others_is_their_value_difference(world: builders.World) -> None:
    """The student's steps pay V − γV', with V(terminal) = 0 even under an absorbing end, and nothing of φ."""
    for terminal in ("zero", "absorbing"):
        loss = bound(value_term="value_mix", gamma=0.9, alpha=2.0, gauge="lse", terminal=terminal, q_min=FLOOR)
        out = loss(builders.steps_of(world))
        v_t, counts = out.metrics["td/v"][2], ~out.metrics["td/q"][2].isnan()
        want = torch.stack([v_t[0] - 0.9 * v_t[1], v_t[1]])
        torch.testing.assert_close(out.loss_t[2, :2].detach(), torch.where(counts[:2], want, 0.0), atol=1e-12, rtol=0)
        assert counts[:2].any()


@pytest.mark.parametrize("value_term", TERMS)
def test_phi_on_all_adds_the_squared_error_of_others(world: builders.World, value_term: str) -> None:
    """r²/(4α) on the student's steps; its linear part stays on the expert's."""
    knobs: dict[str, Any] = {"value_term": value_term, "gamma": 0.9, "alpha": 0.7, "gauge": "lse", "q_min": FLOOR}
    out = bound(phi_on="all", **knobs)(builders.steps_of(world))
    curvature_t = torch.nan_to_num(out.metrics["td/reward"][2]).square() / (4 * 0.7)
    if value_term == "v0":
        curvature_t = curvature_t * discount_weights(world.mask, 0.9, torch.float64)[2]
    base = loss_of(world, **{**knobs, "value_term": "value_mix"})[2] if value_term == "value_mix" else torch.zeros(4)
    torch.testing.assert_close(torch.where(world.mask[2], out.loss_t[2].detach() - base, 0.0), curvature_t.where(world.mask[2], 0.0))


def test_phi_on_all_is_for_chi2() -> None:
    for phi in PHIS[1:]:
        with pytest.raises(ConfigError, match=f"phi_on='all'.*phi='{phi}'"):
            bound(phi_on="all", phi=phi)


@pytest.mark.parametrize(
    ("arguments", "mixed"),
    [({}, False), ({"value_term": "v0"}, False), ({"value_term": "value_mix"}, True), ({"phi_on": "all"}, True)],
)
def test_needs_steps_of_others_only_where_it_learns_from_them(world: builders.World, arguments: dict[str, Any], mixed: bool) -> None:
    objective = bound(**arguments)
    assert objective.needs == ({"max", "expert", "other"} if mixed else {"max", "expert"})
    unsaid = builders.steps_of(world, needs=frozenset({"max"}))
    if mixed:
        with pytest.raises(ConfigError, match="expert_t"):
            objective(unsaid)
    else:  # whoever says nothing has the expert's steps alone
        assert torch.equal(objective(unsaid).loss_t, objective(replace(unsaid, expert_t=torch.ones_like(unsaid.mask_t))).loss_t)
        assert objective(builders.steps_of(world)).loss_t[2].eq(0).all()


@settings(max_examples=40, deadline=None)
@given(
    made=builders.worlds(),
    pad_t=st.integers(0, 3),
    pad_k=st.integers(0, 3),
    junk=st.sampled_from([0.0, -90.0, 1e4]),
    gamma=st.sampled_from(GAMMAS[:-1]),
    knobs=st.sampled_from(KNOBS),
)
def test_padding_changes_nothing(made: builders.World, pad_t: int, pad_k: int, junk: float, gamma: float, knobs: dict[str, Any]) -> None:
    builders.assert_padding_invariant(made, bound(gamma=gamma, **knobs), pad_t, pad_k, junk)


@pytest.mark.parametrize("knobs", KNOBS[::7], ids=knob_id)
def test_masks_extremes_and_finite_differences(world: builders.World, knobs: dict[str, Any]) -> None:
    loss = bound(**{"q_min": None, "alpha": 2.0} | knobs)
    builders.assert_masked_gradient_is_zero(world, loss)
    builders.assert_finite_at_extremes(loss, seeds=1)
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4, expert=(True, False))
    builders.assert_gradcheck(made, loss)
