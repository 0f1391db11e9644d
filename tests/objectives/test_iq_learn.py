"""Top-p inverse soft Q-learning: every knob against the loops, the identities it must satisfy, and its conventions."""

import itertools
import math
from dataclasses import replace
from typing import Any

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tdistill.objectives import bind
from tdistill.objectives.iq_learn import clip_below, phi_alpha

GAUGES = ["none", "max", "max_support", "mean_support", "lse", "learned"]
KNOBS = [
    dict(zip(("phi", "terminal", "estimator", "gauge", "anchor", "q_min"), values, strict=True))
    for values in itertools.product(
        [("chi2", "zero"), ("chi2", "absorbing"), ("linear", "zero")],
        ["sampled", "expected"],
        GAUGES,
        ["none", "tail", "nll"],
        [None, -1.0],
    )
    for values in [(*values[0], *values[1:])]
]
PLAIN: dict[str, Any] = {"phi": "linear", "anchor": "none", "q_min": None}  # cloning on A_p, in any gauge


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(**knobs: Any) -> Any:
    return lambda response: [step.loss for step in oracles.iq_learn(response, **knobs)]


def loss_of(world: builders.World, **knobs: Any) -> Tensor:
    return builders.loss_and_grads(world, bind("iq_learn", **knobs))[0]


def counted(world: builders.World) -> Tensor:
    """Steps with a TD loss: on support, and not the last of a cut-off."""
    steps = builders.steps_of(world)
    last = torch.arange(world.tokens.shape[1]) == torch.tensor(world.lengths).unsqueeze(-1) - 1
    return steps.mask_t & (steps.a_t >= 0) & (~last | steps.terminal_t)


@pytest.fixture
def world() -> builders.World:
    """Three responses, one cut off, with tokens on and off support among the counted and the last steps."""
    made = builders.make_world(seed=21, lengths=(4, 3, 2), finished=(True, False, True), p=0.8)
    assert 4 <= counted(made).sum() < made.mask.sum() - 1
    return made


# --- the loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(knobs: dict[str, Any]) -> None:
    seed = KNOBS.index(knobs)
    given_knobs = {"gamma": 0.9, "alpha": 1.5, "anchor_weight": 0.7, **knobs}
    made = builders.make_world(seed, lengths=(3, 2), finished=(True, seed % 2 == 0))
    builders.assert_equals_oracle(made, bind("iq_learn", **given_knobs), oracle(**given_knobs))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_equals_the_oracle_in_float32(world: builders.World, gauge: str, estimator: str) -> None:
    knobs = {"gamma": 0.9, "alpha": 1.5, "gauge": gauge, "estimator": estimator, "anchor": "tail", "q_min": -1.0}
    builders.assert_equals_oracle(world, bind("iq_learn", **knobs), oracle(**knobs), torch.float32)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 100.0])
def test_equals_the_oracle_over_gamma_and_alpha(world: builders.World, gamma: float, alpha: float) -> None:
    knobs = {"gamma": gamma, "alpha": alpha, "gauge": "max", "q_min": -10.0}
    builders.assert_equals_oracle(world, bind("iq_learn", gamma=gamma, alpha=alpha), oracle(**knobs))


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("terminal", ["zero", "absorbing"])
def test_metrics_equal_the_oracle(world: builders.World, gauge: str, terminal: str) -> None:
    knobs = {"gamma": 0.9, "alpha": 1.5, "gauge": gauge, "terminal": terminal, "q_min": -1.0}
    metrics = bind("iq_learn", **knobs)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    for b, response in enumerate(world.responses()):
        for t, step in enumerate(oracles.iq_learn(response, **knobs)):
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
    builders.assert_gradcheck(made, bind("iq_learn", gauge=gauge, estimator=estimator, anchor=anchor, alpha=2.0, q_min=None))


# --- what the loss reduces to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_linear_phi_is_cloning_on_the_candidates_in_every_gauge(world: builders.World, gauge: str, gamma: float) -> None:
    """−φ(r) + V − γV' = −log proj_p π(a|s): γ, the gauge and the terminal value cancel, in value and gradient."""

    def cloning(response: oracles.Response) -> list[Tensor]:
        return [
            oracles.proj_nll(response, t)
            if token in response.candidates[t] and (response.finished or t + 1 < len(response))
            else torch.zeros((), dtype=torch.float64)
            for t, token in enumerate(response.tokens)
        ]

    builders.assert_equals_oracle(world, bind("iq_learn", gamma=gamma, gauge=gauge, **PLAIN), cloning)


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("terminal", ["zero", "absorbing"])
def test_chi2_adds_the_squared_bellman_error(world: builders.World, gauge: str, terminal: str) -> None:
    """BD = −log proj_p π(a_t|s_t) + r_t²/(4α)."""
    knobs = {"gamma": 0.9, "alpha": 0.3, "gauge": gauge, "q_min": None, "terminal": terminal}
    added = loss_of(world, **knobs) - loss_of(world, gamma=0.9, gauge=gauge, **PLAIN)
    for b, response in enumerate(world.responses()):
        for t, step in enumerate(oracles.iq_learn(response, **knobs)):
            want = 0.0 if step.reward is None else step.reward.item() ** 2 / (4 * 0.3)
            assert added[b, t].item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("knobs", [{"estimator": "sampled"}, {"estimator": "expected", "anchor": "tail"}], ids=knob_id)
def test_infinite_alpha_is_linear(world: builders.World, knobs: dict[str, Any]) -> None:
    infinite, huge = (builders.loss_and_grads(world, bind("iq_learn", alpha=a, **knobs)) for a in (float("inf"), 1e14))
    linear = builders.loss_and_grads(world, bind("iq_learn", phi="linear", **knobs))
    for a, b, c in zip(infinite, huge, linear, strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(b, c, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("gauge", GAUGES)
def test_expected_and_linear_is_the_cross_entropy_of_the_projections(world: builders.World, gauge: str) -> None:
    loss_t = loss_of(world, gamma=0.9, gauge=gauge, estimator="expected", **PLAIN)
    for b, t in counted(world).nonzero().tolist():
        want = oracles.proj_cross_entropy(world.responses()[b], t).item()
        assert loss_t[b, t].item() == pytest.approx(want, abs=1e-9)
    assert loss_t[~counted(world)].eq(0).all()


def test_expected_is_the_teachers_mean_of_sampled() -> None:
    """At the last step every token has the same successor, so the two estimators agree in the mean for any φ."""
    made = builders.make_world(seed=3, lengths=(1,), finished=(True,), vocab=6, p=0.95)
    inside, logp = made.responses()[0].candidates[0], made.teacher_logp[0, 0]
    taken = [loss_of(replace(made, tokens=torch.tensor([[a]])), alpha=0.5).item() for a in inside]
    mean = (logp[inside].softmax(-1) * torch.tensor(taken, dtype=torch.float64)).sum()
    expected = loss_of(replace(made, tokens=torch.tensor([[inside[0]]])), alpha=0.5, estimator="expected")
    assert len(inside) > 2
    assert expected.item() == pytest.approx(mean.item(), abs=1e-9)


def test_gamma_0_never_looks_ahead() -> None:
    """The loss of step 0 has no gradient for later states at γ=0, and has one at γ>0."""
    made = builders.make_world(seed=1, lengths=(3,), finished=(True,), off_support=0.0)
    for gamma, blind in ((0.0, True), (0.5, False)):
        loss_t = bind("iq_learn", gamma=gamma, gauge="lse")(builders.steps_of(made)).loss_t
        (grad,) = torch.autograd.grad(loss_t[0, 0], made.logits)
        assert grad[0, 0].ne(0).any()
        assert grad[0, 1].eq(0).all() == blind
        assert grad[0, 2].eq(0).all()


def test_the_teacher_as_its_own_student_has_the_reward_log_pi_and_no_value() -> None:
    """Over all tokens V ≡ 0 under the gauge ``lse``, at every γ: a perfect student has nothing to look ahead for."""
    made = builders.make_world(seed=4, lengths=(4,), finished=(True,), p=1.0)
    made.logits.data.copy_(made.teacher_logp + 1.7)
    for gamma in (0.0, 0.7, 1.0):
        metrics = bind("iq_learn", gauge="lse", gamma=gamma)(builders.steps_of(made)).metrics
        assert metrics["td/v"].abs().max() < 1e-12
        log_pi = made.teacher_logp.gather(-1, made.tokens.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(metrics["td/reward"], log_pi, atol=1e-12, rtol=0)


def test_the_learned_gauge_makes_the_head_the_value(world: builders.World) -> None:
    metrics = bind("iq_learn", gauge="learned", q_min=None)(builders.steps_of(world)).metrics
    torch.testing.assert_close(metrics["td/v"][world.mask], world.value.detach()[world.mask], atol=1e-12, rtol=0)


def test_a_gauge_change_moves_the_reward_by_a_potential(world: builders.World) -> None:
    """r under Q − c is r + γc(s_{t+1}) − c(s_t), with c(terminal) = 0."""
    plain = bind("iq_learn", gauge="none", gamma=0.8, q_min=None)(builders.steps_of(world)).metrics["td/reward"]
    for gauge in GAUGES[1:]:
        shifted = bind("iq_learn", gauge=gauge, gamma=0.8, q_min=None)(builders.steps_of(world)).metrics["td/reward"]
        for b, t in counted(world).nonzero().tolist():
            response = world.responses()[b]
            c_t = oracles.gauge_shift(response, t, gauge)
            c_tp1 = oracles.gauge_shift(response, t + 1, gauge) if t + 1 < len(response) else 0.0
            assert (shifted - plain)[b, t].item() == pytest.approx((0.8 * c_tp1 - c_t).item(), abs=1e-9)


@pytest.mark.parametrize(
    ("alpha", "policy"),
    [
        (0.1, [0.35, 0.29, 0.21, 0.15]),
        (1.0, [0.58, 0.25, 0.11, 0.06]),
        (10.0, [0.68, 0.21, 0.08, 0.03]),
        (100.0, [0.70, 0.20, 0.07, 0.03]),
    ],
)
def test_a_finite_alpha_biases_even_a_bandit(alpha: float, policy: list[float]) -> None:
    """The exact minimiser for one choice among four tokens, as the documentation states it."""
    made = builders.make_world(vocab=4, lengths=(1,), finished=(True,), p=1.0)
    made.teacher_logp[0, 0] = torch.tensor([0.70, 0.20, 0.07, 0.03], dtype=torch.float64).log()
    objective = bind("iq_learn", alpha=alpha, gauge="none", estimator="expected", q_min=None)
    optimizer = torch.optim.LBFGS([made.logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        loss_t, made.logits.grad, _ = builders.loss_and_grads(made, objective)
        return loss_t.item()

    optimizer.step(closure)
    assert made.logits.softmax(-1)[0, 0].tolist() == pytest.approx(policy, abs=0.005)


# --- conventions -----------------------------------------------------------------------------------------------------


def with_token_off_support(made: builders.World, t: int) -> builders.World:
    inside = made.responses()[0].candidates[t]
    tokens = made.tokens.clone()
    tokens[0, t] = next(a for a in range(made.logits.shape[-1]) if a not in inside)
    return replace(made, tokens=tokens)


@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_an_off_support_step_pays_nothing_and_still_serves_the_one_before(estimator: str) -> None:
    made = builders.make_world(seed=5, lengths=(3,), finished=(True,), off_support=0.0)
    off = with_token_off_support(made, t=1)
    before, after = (loss_of(w, estimator=estimator)[0] for w in (made, off))
    assert before[1] != 0
    assert after[1] == 0
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    loss_t = bind("iq_learn", estimator=estimator)(builders.steps_of(off)).loss_t
    assert torch.autograd.grad(loss_t[0, 1], made.logits, retain_graph=True)[0].eq(0).all()
    assert torch.autograd.grad(loss_t[0, 0], made.logits)[0][0, 1].ne(0).any()


def test_the_last_step_of_a_cut_off_pays_nothing_and_still_serves_the_one_before() -> None:
    made = builders.make_world(seed=6, lengths=(3,), finished=(False,), off_support=0.0)
    loss_t = bind("iq_learn")(builders.steps_of(made)).loss_t
    assert loss_t[0, 2] == 0
    assert torch.autograd.grad(loss_t[0, 2], made.logits, retain_graph=True)[0].eq(0).all()
    assert torch.autograd.grad(loss_t[0, 1], made.logits)[0][0, 2].ne(0).any()
    assert loss_of(replace(made, finished=(True,)))[0, 2] != 0


def test_the_end_is_worth_nothing_or_the_absorbing_value() -> None:
    """At the end r = Q − γ·V(terminal), V(terminal) = 0 or 2α/(1−γ); earlier steps are the same."""
    made = builders.make_world(seed=7, lengths=(3,), finished=(True,), off_support=0.0)
    knobs: dict[str, Any] = {"gamma": 0.9, "alpha": 0.5, "gauge": "lse"}
    zero, absorbing = (bind("iq_learn", terminal=t, **knobs)(builders.steps_of(made)).metrics["td/reward"][0] for t in ("zero", "absorbing"))
    q = -oracles.nll(made.responses()[0])[2]
    assert zero[2].item() == pytest.approx(q.item(), abs=1e-12)
    assert absorbing[2].item() == pytest.approx(q.item() - 0.9 * 2 * 0.5 / 0.1, abs=1e-12)
    assert torch.equal(zero[:2], absorbing[:2])


@pytest.mark.parametrize("anchor", ["tail", "nll"])
def test_the_anchor_holds_steps_without_a_td_loss_too(world: builders.World, anchor: str) -> None:
    added = loss_of(world, anchor=anchor, anchor_weight=2.0) - loss_of(world)
    assert (~counted(world) & world.mask).any()
    for b, response in enumerate(world.responses()):
        for t in range(len(response)):
            want = 2.0 * oracles.anchor_term(response, t, anchor).item()
            assert added[b, t].item() == pytest.approx(want, abs=1e-9)
    assert torch.equal(loss_of(world, anchor=anchor, anchor_weight=0.0), loss_of(world))


# --- clip ------------------------------------------------------------------------------------------------------------


def test_the_clip_is_hard_in_value_and_one_way_in_gradient() -> None:
    x = torch.tensor([-5.0, -5.0, -5.0, 1.0, 1.0, -2.0], requires_grad=True)
    clipped = clip_below(x, -2.0)
    assert clipped.tolist() == [-2.0, -2.0, -2.0, 1.0, 1.0, -2.0]
    (grad,) = torch.autograd.grad(clipped, x, torch.tensor([3.0, -3.0, 0.0, 3.0, -3.0, 3.0]))
    assert grad.tolist() == [0.0, -3.0, 0.0, 3.0, -3.0, 3.0]


def test_a_clipped_token_is_pulled_up_when_taken_and_left_alone_otherwise() -> None:
    made = builders.make_world(vocab=3, lengths=(1,), finished=(True,), p=1.0)
    made.logits.data[0, 0] = torch.tensor([0.0, -7.0, -8.0])
    knobs: dict[str, Any] = {"gauge": "none", "phi": "linear", "q_min": -5.0}
    loss_t, grad, _ = builders.loss_and_grads(replace(made, tokens=torch.tensor([[1]])), bind("iq_learn", **knobs))
    policy = torch.tensor([0.0, -5.0, -5.0], dtype=torch.float64).softmax(-1)
    assert loss_t.item() == pytest.approx(-policy[1].log().item(), abs=1e-12)
    assert grad[0, 0].tolist() == pytest.approx([policy[0].item(), policy[1].item() - 1.0, 0.0], abs=1e-12)


def test_no_clip_when_nothing_lies_below_the_floor(world: builders.World) -> None:
    for ours, free in zip(*(builders.loss_and_grads(world, bind("iq_learn", q_min=q_min)) for q_min in (-1e3, None)), strict=True):
        assert torch.equal(ours, free)


@pytest.mark.parametrize(("alpha", "peak"), [(0.1, 0.2), (3.0, 6.0)])
def test_chi2_peaks_at_two_alpha(alpha: float, peak: float) -> None:
    x = torch.linspace(-2 * peak, 4 * peak, 6001, dtype=torch.float64)
    assert x[phi_alpha(x, "chi2", alpha).argmax()].item() == pytest.approx(peak, abs=1e-3 * peak)


# --- robustness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS[::5], ids=knob_id)
def test_reads_no_more_than_it_needs(knobs: dict[str, Any]) -> None:
    bound = bind("iq_learn", **knobs)
    lean, full = (builders.steps_of(builders.make_world(), needs=n) for n in (bound.needs, builders.EVERY_NEED))
    assert torch.equal(bound(lean).loss_t, bound(full).loss_t)


@settings(max_examples=40, deadline=None)
@given(
    made=builders.worlds(),
    pad_t=st.integers(0, 3),
    pad_k=st.integers(0, 3),
    junk=st.sampled_from([0.0, -90.0, 1e4]),
    knobs=st.sampled_from(KNOBS),
)
def test_padding_changes_nothing(made: builders.World, pad_t: int, pad_k: int, junk: float, knobs: dict[str, Any]) -> None:
    builders.assert_padding_invariant(made, bind("iq_learn", **knobs), pad_t, pad_k, junk)


@pytest.mark.parametrize("knobs", KNOBS[::7], ids=knob_id)
def test_masked_slots_get_no_gradient(world: builders.World, knobs: dict[str, Any]) -> None:
    builders.assert_masked_gradient_is_zero(world, bind("iq_learn", **knobs))


@pytest.mark.parametrize("knobs", KNOBS[::5], ids=knob_id)
def test_extreme_logits_stay_finite(knobs: dict[str, Any]) -> None:
    builders.assert_finite_at_extremes(bind("iq_learn", **knobs), seeds=1)
