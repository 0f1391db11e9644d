"""What every divergence owes: the loops' values and gradients on each support, padding, masks, extremes, zero at the teacher."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import builders
import oracles
import oracles_divergences as divergences
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_divergences import per_step
from pairwise import pairwise
from torch import Tensor

from tdistill.objectives import BoundObjective, bind
from tdistill.runtime.errors import ConfigError

SETTINGS = [
    ("tail", 1.0),
    ("proj", 1.0),
    ("proj", 0.5),
    ("proj", 2.0),
    ("dense", 1.0),
    ("dense", 0.5),
    ("dense", 2.0),
    ("uniform", 1.0),
    ("uniform", 2.0),
]
SUPPORTS = ["tail", "proj", "uniform", "dense"]
ALPHA_BETA = [(0.2, 0.7), (0.5, 0.5), (1.0, 1.0), (2.0, -1.0), (-1.0, 2.0), (0.7, 0.0), (0.0, 0.7), (0.5, -0.5), (-0.4, 0.4), (0.0, 0.0)]

Case = tuple[str, dict[str, float], Callable[..., list[Tensor]]]
CASES: list[Case] = [
    ("forward_kl", {}, oracles.forward_kl),
    ("reverse_kl", {}, oracles.reverse_kl),
    *[("jsd", {"beta": x}, per_step(divergences.jsd, beta=x)) for x in (0.0, 0.1, 0.5, 1.0)],
    *[("skew_kl", {"skew": x}, per_step(divergences.skew_kl, skew=x)) for x in (0.1, 0.9)],
    *[("skew_rkl", {"skew": x}, per_step(divergences.skew_rkl, skew=x)) for x in (0.1, 0.9)],
    ("tvd", {}, per_step(divergences.tvd)),
    *[("alpha_beta", {"alpha": a, "beta": b}, per_step(divergences.alpha_beta, alpha=a, beta=b)) for a, b in ALPHA_BETA],
]
# Coarsening (the tail bucket) can only shrink an f-divergence; the α-β-divergence is one for α + β = 1.
F_DIVERGENCES = [case for case in CASES if case[0] != "alpha_beta" or case[1]["alpha"] + case[1]["beta"] == 1.0]
NAMES = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_rkl", "tvd", "alpha_beta"]


def case_id(case: Case) -> str:
    return "-".join([case[0], *(f"{v:g}" for v in case[1].values())])


every_case = pytest.mark.parametrize("case", CASES, ids=case_id)


def loss(case: Case, support: str, loss_temperature: float = 1.0) -> builders.Loss:
    return bind(case[0], support=support, loss_temperature=loss_temperature, **case[1])


def matched(world: builders.World) -> builders.World:
    """A student with the teacher's policy: its logits are the teacher's log-probs but for a constant per state."""
    shift = torch.linspace(-3, 5, world.tokens.numel(), dtype=torch.float64).view(world.tokens.shape).unsqueeze(-1)
    return replace(world, logits=(world.teacher_logp + shift).requires_grad_())


def swapped(world: builders.World) -> builders.World:
    """Student and teacher with their roles exchanged, on all tokens (p = 1)."""
    student = world.logits.detach().log_softmax(-1)
    return replace(world, logits=world.teacher_logp.clone().requires_grad_(), teacher_logp=student)


ORACLE_CASES = pairwise(
    {"case": i, "setting": setting, "p": p} for i in range(len(CASES)) for setting in SETTINGS for p in (0.05, 0.8, 0.95, 1.0)
)


@pytest.mark.parametrize("knobs", ORACLE_CASES, ids=lambda k: f"{case_id(CASES[k['case']])}-{k['setting'][0]}-{k['setting'][1]}-{k['p']}")
def test_equals_the_oracle(knobs: dict[str, Any]) -> None:
    case, (support, temperature), p = CASES[knobs["case"]], knobs["setting"], knobs["p"]
    world = builders.make_world(seed=11, lengths=(4, 2, 3), finished=(True, False, True), p=p)
    oracle = lambda r: case[2](r, support=support, loss_temperature=temperature)  # noqa: E731
    for dtype in (torch.float64, torch.float32):
        builders.assert_equals_oracle(world, loss(case, support, temperature), oracle, dtype)


@every_case
@pytest.mark.parametrize("support", SUPPORTS)
def test_a_perfect_student_pays_nothing(case: Case, support: str) -> None:
    world = builders.make_world(seed=2)
    if support == "uniform":  # knows the teacher only where its tail is even
        world = builders.with_even_tail(world)
    loss_t, grad, _ = builders.loss_and_grads(matched(world), loss(case, support))
    assert loss_t.abs().max() < 1e-12
    assert case[0] == "tvd" or grad.abs().max() < 1e-12  # |p − q| has a kink there


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (bind("reverse_kl"), bind("forward_kl")),
        (bind("jsd", beta=0.1), bind("jsd", beta=0.9)),
        (bind("jsd", beta=0.5), bind("jsd", beta=0.5)),
        (bind("skew_rkl", skew=0.3), bind("skew_kl", skew=0.3)),
        (bind("tvd"), bind("tvd")),
        *[(bind("alpha_beta", alpha=a, beta=b), bind("alpha_beta", alpha=b, beta=a)) for a, b in ALPHA_BETA],
    ],
    ids=lambda bound: bound.describe(),
)
def test_is_another_with_the_roles_exchanged(one: BoundObjective, other: BoundObjective) -> None:
    world = builders.make_world(seed=12, p=1.0)
    ours, theirs = builders.loss_and_grads(world, one)[0], builders.loss_and_grads(swapped(world), other)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@every_case
@settings(max_examples=10, deadline=None)
@given(world=builders.worlds())
def test_any_other_student_pays(case: Case, world: builders.World) -> None:
    for support in SUPPORTS:
        loss_t = builders.loss_and_grads(world, loss(case, support))[0]
        assert loss_t.min() > -1e-12
        if support == "dense":
            assert loss_t[world.mask].min() > 1e-6


@every_case
def test_the_tail_bucket_with_every_token_a_candidate_is_the_dense_loss(case: Case) -> None:
    world = builders.make_world(seed=3, lengths=(4, 2), p=1.0)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tail, uniform, dense = (builders.loss_and_grads(world, loss(case, s), dtype=dtype) for s in ("tail", "uniform", "dense"))
        for *known, want in zip(tail, uniform, dense, strict=True):
            for got in known:
                torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_an_even_tail_asks_for_an_even_tail() -> None:
    """By the chain rule: uniform − tail = m̄·KL(q outside A_p ‖ uniform), m̄ the student's mass there."""
    world = builders.make_world(seed=6, lengths=(5, 3), vocab=9, p=0.7)
    tail, uniform = (builders.loss_and_grads(world, bind("reverse_kl", support=s))[0] for s in ("tail", "uniform"))
    steps = builders.steps_of(world)
    for b, t in world.mask.nonzero().tolist():
        inside = oracles.top_p_set(world.teacher_logp[b, t].tolist(), world.p)
        outside = [a for a in range(9) if a not in inside]
        q = world.logits[b, t].detach().softmax(-1)[outside]
        want = q.sum() * ((q / q.sum()).log() + math.log(len(outside))).mul(q / q.sum()).sum() if outside else 0.0
        assert (uniform - tail)[b, t].item() == pytest.approx(float(want), abs=1e-12)
        assert steps.uniform.teacher_logp_t[b, t].exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@every_case
def test_a_bucket_stays_where_only_a_neighbour_has_every_token(case: Case) -> None:
    """K = V because one state keeps all tokens: the narrow states of the batch still have a tail."""
    world = builders.make_world(seed=4, lengths=(3, 3), finished=(True, True), vocab=4, p=0.9)
    world.teacher_logp[0, 0] = torch.full((4,), 0.25, dtype=torch.float64).log()
    steps = builders.steps_of(world)
    assert steps.legal_t.shape[-1] == 4
    assert not steps.legal_t.all()
    builders.assert_equals_oracle(world, loss(case, "tail"), case[2])


@pytest.mark.parametrize("case", F_DIVERGENCES, ids=case_id)
@settings(max_examples=15, deadline=None)
@given(world=builders.worlds())
def test_the_tail_bucket_is_a_lower_bound(case: Case, world: builders.World) -> None:
    dense, tail = (builders.loss_and_grads(world, loss(case, s))[0] for s in ("dense", "tail"))
    assert (tail <= dense + 1e-9).all()


@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] in ("tvd", "skew_kl", "skew_rkl", "jsd", "forward_kl") and c[1].get("beta") != 1], ids=case_id
)
def test_a_token_that_the_teacher_rules_out(case: Case) -> None:
    """p = 0 at a slot that counts: value and gradient of all that stays finite there."""
    world = builders.make_world(seed=5, lengths=(3,), finished=(True,))
    world.teacher_logp[0, :, 2] = -torch.inf
    world = replace(world, teacher_logp=world.teacher_logp.log_softmax(-1))
    builders.assert_equals_oracle(world, loss(case, "dense"), lambda r: case[2](r, support="dense"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0.5, 2.0])
def test_a_temperature_with_a_tail_bucket_is_refused(name: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=r"loss_temperature.*tail.*proj.*dense"):
        bind(name, loss_temperature=bad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("support", "needs"), [("tail", {"log_z"}), ("proj", set()), ("uniform", {"uniform"}), ("dense", {"dense"})])
def test_needs_no_more_than_it_reads(name: str, support: str, needs: set[str]) -> None:
    bound = bind(name, support=support)
    assert bound.needs == needs
    full, lean = (builders.steps_of(builders.make_world(), needs=n) for n in (builders.EVERY_NEED, bound.needs))
    assert torch.equal(bound(lean).loss_t, bound(full).loss_t)


@every_case
@settings(max_examples=10, deadline=None)
@given(world=builders.worlds(), pad_t=st.integers(0, 3), pad_k=st.integers(0, 3), junk=st.sampled_from([0.0, -90.0, 1e4]))
def test_padding_changes_nothing(case: Case, world: builders.World, pad_t: int, pad_k: int, junk: float) -> None:
    for support in SUPPORTS:
        builders.assert_padding_invariant(world, loss(case, support), pad_t, pad_k, junk)


@every_case
@pytest.mark.parametrize("support", ["tail", "proj"])
def test_masked_slots_get_no_gradient(case: Case, support: str) -> None:
    builders.assert_masked_gradient_is_zero(builders.make_world(), loss(case, support))


@every_case
@pytest.mark.parametrize("support", SUPPORTS)
def test_extreme_logits_stay_finite(case: Case, support: str) -> None:
    builders.assert_finite_at_extremes(loss(case, support))


@every_case
@pytest.mark.parametrize("support", SUPPORTS)
def test_gradcheck(case: Case, support: str) -> None:
    builders.assert_gradcheck(builders.make_world(), loss(case, support))
