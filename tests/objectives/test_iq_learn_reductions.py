"""The identities that top-p inverse soft Q-learning must satisfy."""

from dataclasses import replace
from typing import Any

import builders
import oracles
import oracles_inverse
import pytest
import torch
from iq_learn_cases import GAUGES, PLAIN, bound, counted, every_kind_of_step, knob_id, loss_of
from torch import Tensor


@pytest.fixture
def world() -> builders.World:
    return every_kind_of_step()


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

    builders.assert_equals_oracle(world, bound(gamma=gamma, gauge=gauge, **PLAIN), cloning)


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("terminal", ["zero", "absorbing"])
def test_chi2_adds_the_squared_bellman_error(world: builders.World, gauge: str, terminal: str) -> None:
    """BD = −log proj_p π(a_t|s_t) + r_t²/(4α)."""
    knobs = {"gamma": 0.9, "alpha": 0.3, "gauge": gauge, "q_min": None, "terminal": terminal}
    added = loss_of(world, **knobs) - loss_of(world, gamma=0.9, gauge=gauge, **PLAIN)
    for b, response in enumerate(world.responses()):
        for t, step in enumerate(oracles_inverse.iq_learn(response, **knobs)):
            want = 0.0 if step.reward is None else step.reward.item() ** 2 / (4 * 0.3)
            assert added[b, t].item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("knobs", [{"estimator": "sampled"}, {"estimator": "expected", "anchor": "tail"}], ids=knob_id)
def test_infinite_alpha_is_linear(world: builders.World, knobs: dict[str, Any]) -> None:
    infinite, huge = (builders.loss_and_grads(world, bound(alpha=a, **knobs)) for a in (float("inf"), 1e14))
    linear = builders.loss_and_grads(world, bound(phi="linear", **knobs))
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
        loss_t = bound(gamma=gamma, gauge="lse")(builders.steps_of(made)).loss_t
        (grad,) = torch.autograd.grad(loss_t[0, 0], made.logits)
        assert grad[0, 0].ne(0).any()
        assert grad[0, 1].eq(0).all() == blind
        assert grad[0, 2].eq(0).all()


def test_the_teacher_as_its_own_student_has_the_reward_log_pi_and_no_value() -> None:
    """Over all tokens V ≡ 0 under the gauge ``lse``, at every γ: a perfect student has nothing to look ahead for."""
    made = builders.make_world(seed=4, lengths=(4,), finished=(True,), p=1.0)
    made.logits.data.copy_(made.teacher_logp + 1.7)
    for gamma in (0.0, 0.7, 1.0):
        metrics = bound(gauge="lse", gamma=gamma)(builders.steps_of(made)).metrics
        assert metrics["td/v"].abs().max() < 1e-12
        log_pi = made.teacher_logp.gather(-1, made.tokens.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(metrics["td/reward"], log_pi, atol=1e-12, rtol=0)


def test_the_learned_gauge_makes_the_head_the_value(world: builders.World) -> None:
    metrics = bound(gauge="learned", q_min=None)(builders.steps_of(world)).metrics
    torch.testing.assert_close(metrics["td/v"][world.mask], world.value.detach()[world.mask], atol=1e-12, rtol=0)


def test_a_gauge_change_moves_the_reward_by_a_potential(world: builders.World) -> None:
    """r under Q − c is r + γc(s_{t+1}) − c(s_t), with c(terminal) = 0."""
    plain = bound(gauge="none", gamma=0.8, q_min=None)(builders.steps_of(world)).metrics["td/reward"]
    for gauge in GAUGES[1:]:
        shifted = bound(gauge=gauge, gamma=0.8, q_min=None)(builders.steps_of(world)).metrics["td/reward"]
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
    objective = bound(alpha=alpha, gauge="none", estimator="expected", q_min=None)
    optimizer = torch.optim.LBFGS([made.logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        loss_t, made.logits.grad, _ = builders.loss_and_grads(made, objective)
        return loss_t.item()

    optimizer.step(closure)
    assert made.logits.softmax(-1)[0, 0].tolist() == pytest.approx(policy, abs=0.005)
