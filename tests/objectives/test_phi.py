"""The φ of inverse soft Q-learning: formulas, shape, tangents, and what each does inside ``iq_learn``."""

import math
from typing import Any

import builders
import oracles_inverse
import pytest
import torch
from iq_learn_cases import bound, counted, every_kind_of_step, loss_of, oracle

from tdistill.objectives.parts.phi import ARGMAX, MARGIN, extended, phi_alpha, r_max
from tdistill.runtime.errors import ConfigError

PHIS = ["chi2", "hellinger", "kl", "js", "tv", "linear"]
NEW = PHIS[1:-1]
ALPHAS = [0.1, 1.0, 7.0]


@pytest.fixture
def world() -> builders.World:
    return every_kind_of_step()


def line(low: float, high: float, n: int = 2001) -> torch.Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64, requires_grad=True)


def value_and_slope(x: torch.Tensor, phi: str, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    value = phi_alpha(x, phi, alpha)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_the_formula_in_value_and_slope(phi: str, alpha: float) -> None:
    x = line(-7.3 * alpha, 4.1 * alpha, 101)
    value, slope = value_and_slope(x, phi, alpha)
    want = torch.stack([oracles_inverse.phi(xi, phi, alpha) for xi in x.unbind()])
    torch.testing.assert_close(value, want.detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(want.sum(), x)[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_is_concave_and_starts_as_x(phi: str, alpha: float) -> None:
    _, slope = value_and_slope(line(-9 * alpha, 9 * alpha), phi, alpha)
    assert (slope.diff() <= 1e-12).all()
    value, at_zero = value_and_slope(torch.zeros(1, dtype=torch.float64, requires_grad=True), phi, alpha)
    assert value.item() == 0.0
    assert at_zero.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("phi", PHIS)
def test_alpha_only_scales(phi: str) -> None:
    x = line(-6.0, 6.0, 101)
    torch.testing.assert_close(phi_alpha(x, phi, 3.0), 3.0 * phi_alpha(x / 3.0, phi, 1.0), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("phi", PHIS)
def test_infinite_alpha_is_linear(phi: str) -> None:
    x = line(-50.0, 50.0, 101)
    assert torch.equal(phi_alpha(x, phi, math.inf), x)
    value, slope = value_and_slope(x, phi, 1e12)
    torch.testing.assert_close(value, x.detach(), atol=1e-8, rtol=0)
    torch.testing.assert_close(slope, torch.ones_like(slope), atol=1e-9, rtol=0)


@pytest.mark.parametrize("phi", ["hellinger", "kl", "js"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_goes_on_as_its_tangent_below_a_margin(phi: str, alpha: float) -> None:
    """Value and slope are continuous at the margin; below it the slope is constant; above it φ is the formula."""
    margin = MARGIN[phi] * alpha
    value, slope = value_and_slope(line(margin - 1e-7, margin + 1e-7, 3), phi, alpha)
    assert value.diff().abs().max() < 2e-5
    assert slope.diff().abs().max() < 1e-3
    below, slope = value_and_slope(line(100 * margin, margin, 50), phi, alpha)
    torch.testing.assert_close(slope, slope[-1].expand(50), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(below.diff(), (slope[0] * -99 * margin / 49).expand(49), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("phi", NEW)
def test_the_margin_lies_inside_the_domain(phi: str) -> None:
    assert {"hellinger": -1.0, "kl": -math.inf, "js": -math.log(2), "tv": -0.5 - 1e-9}[phi] < MARGIN[phi] < 0.0
    x = torch.tensor([1.01, 0.99], dtype=torch.float64) * MARGIN[phi] * 2.0
    assert extended(x, phi, 2.0).tolist() == [True, False]


@pytest.mark.parametrize(("phi", "alpha", "peak"), [("chi2", 0.1, 0.2), ("chi2", 3.0, 6.0), ("tv", 0.1, 0.05), ("tv", 3.0, 1.5)])
def test_peaks_where_an_absorbing_end_pays(phi: str, alpha: float, peak: float) -> None:
    x = line(-2 * peak, 4 * peak, 6001)
    value = phi_alpha(x, phi, alpha)
    first = x[(value >= value.max() - 1e-15).nonzero()[0, 0]]
    assert first.item() == pytest.approx(peak, abs=2e-3 * peak)
    assert r_max(phi, alpha) == pytest.approx(peak)


def test_tv_has_the_gradient_of_a_clamp_that_lets_pass_what_would_raise_the_reward() -> None:
    """Inside ±α/2 it is x; above, nothing more to gain; below, the reward is still pulled up."""
    x = torch.tensor([-9.0, -1.0, -0.2, 0.3, 0.8, 9.0], dtype=torch.float64, requires_grad=True)
    value, slope = value_and_slope(x, "tv", 1.0)
    assert value.tolist() == [-9.0, -1.0, -0.2, 0.3, 0.5, 0.5]
    assert slope.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1e-3, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_finite_with_finite_slope_far_out(phi: str, alpha: float, dtype: torch.dtype) -> None:
    x = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], dtype=dtype, requires_grad=True)
    value, slope = value_and_slope(x, phi, alpha)
    assert value.isfinite().all()
    assert slope.isfinite().all()


# --- inside iq_learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", NEW)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
@pytest.mark.parametrize("alpha", [0.3, 4.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_iq_learn_equals_the_oracle(world: builders.World, phi: str, estimator: str, alpha: float, dtype: torch.dtype) -> None:
    knobs: dict[str, Any] = {"gamma": 0.9, "alpha": alpha, "phi": phi, "estimator": estimator, "gauge": "lse", "q_min": None}
    if dtype == torch.float32 and phi == "kl":
        knobs["alpha"] = 4.0  # slopes of e^5 turn float32's rounding into more than the tolerance
    builders.assert_equals_oracle(world, bound(**knobs), oracle(**knobs), dtype)


@pytest.mark.parametrize("phi", NEW)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_logs_how_often_the_tangent_was_used(world: builders.World, phi: str, estimator: str) -> None:
    knobs: dict[str, Any] = {"gamma": 0.9, "alpha": 1.0, "phi": phi, "gauge": "lse", "estimator": estimator}
    got = bound(q_min=None, **knobs)(builders.steps_of(world)).metrics["phi/extended_fraction"]
    for b, t in world.mask.nonzero().tolist():
        if counted(world)[b, t]:
            want = oracles_inverse.extended_fraction(world.responses()[b], t, **knobs)
            assert got[b, t].item() == pytest.approx(want, abs=1e-12)
        else:
            assert got[b, t].isnan()


@pytest.mark.parametrize("phi", ["chi2", "linear"])
def test_what_has_no_tangent_logs_none(world: builders.World, phi: str) -> None:
    assert "phi/extended_fraction" not in bound(phi=phi)(builders.steps_of(world)).metrics


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_infinite_alpha_is_cloning_for_every_phi(world: builders.World, phi: str, estimator: str) -> None:
    """Fact 1: −log proj_p π(a|s), or the cross-entropy of the projections."""
    linear = loss_of(world, phi="linear", estimator=estimator, q_min=None)
    assert torch.equal(loss_of(world, phi=phi, alpha=math.inf, estimator=estimator, q_min=None), linear)
    torch.testing.assert_close(loss_of(world, phi=phi, alpha=1e12, estimator=estimator, q_min=None), linear, atol=1e-9, rtol=0)


@pytest.mark.parametrize("phi", NEW)
def test_gradcheck(phi: str) -> None:
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    builders.assert_gradcheck(made, bound(phi=phi, gauge="lse", alpha=2.0, q_min=None))


@pytest.mark.parametrize("phi", NEW)
@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_padding_masks_and_extremes(world: builders.World, phi: str, estimator: str) -> None:
    loss = bound(phi=phi, estimator=estimator, gauge="learned", q_min=None)
    for junk in (0.0, -90.0, 1e4):
        builders.assert_padding_invariant(world, loss, pad_t=2, pad_k=2, junk=junk)
    builders.assert_masked_gradient_is_zero(world, loss)
    builders.assert_finite_at_extremes(loss)


@pytest.mark.parametrize("phi", ["hellinger", "kl", "js", "linear"])
def test_an_absorbing_end_needs_a_best_reward(phi: str) -> None:
    with pytest.raises(ConfigError, match=f"phi='{phi}'.*'chi2', 'tv'"):
        bound(phi=phi, terminal="absorbing")


def test_an_absorbing_end_under_tv(world: builders.World) -> None:
    knobs: dict[str, Any] = {"gamma": 0.9, "alpha": 1.5, "phi": "tv", "terminal": "absorbing", "gauge": "lse", "q_min": None}
    builders.assert_equals_oracle(world, bound(**knobs), oracle(**knobs))
    assert set(ARGMAX) == {"chi2", "tv"}
