"""KL(teacher ‖ student) on the candidates with a tail bucket, on the projection, and on the whole vocabulary."""

from dataclasses import replace

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.errors import ConfigError
from tdistill.objectives import bind

SETTINGS = [("tail", 1.0), ("proj", 1.0), ("proj", 0.5), ("proj", 2.0), ("dense", 1.0), ("dense", 0.5), ("dense", 2.0)]
SUPPORTS = ["tail", "proj", "dense"]


def loss(support: str, loss_temperature: float = 1.0) -> builders.Loss:
    return bind("forward_kl", support=support, loss_temperature=loss_temperature)


def matched(world: builders.World) -> builders.World:
    """A student with the teacher's policy: its logits are the teacher's log-probs but for a constant per state."""
    shift = torch.linspace(-3, 5, world.tokens.numel(), dtype=torch.float64).view(world.tokens.shape).unsqueeze(-1)
    return replace(world, logits=(world.teacher_logp + shift).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("p", [0.05, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("support", "temperature"), SETTINGS)
def test_equals_the_oracle(support: str, temperature: float, p: float, dtype: torch.dtype) -> None:
    world = builders.make_world(seed=1, lengths=(4, 2, 3), finished=(True, False, True), p=p)
    oracle = lambda r: oracles.forward_kl(r, support=support, loss_temperature=temperature)  # noqa: E731
    builders.assert_equals_oracle(world, loss(support, temperature), oracle, dtype)


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_perfect_student_pays_nothing(support: str) -> None:
    loss_t, grad, _ = builders.loss_and_grads(matched(builders.make_world(seed=2)), loss(support))
    assert loss_t.abs().max() < 1e-12
    assert grad.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_tail_bucket_with_every_token_a_candidate_is_the_dense_loss(dtype: torch.dtype) -> None:
    world = builders.make_world(seed=3, lengths=(4, 2), p=1.0)
    tail, dense = (builders.loss_and_grads(world, loss(s), dtype=dtype) for s in ("tail", "dense"))
    for got, want in zip(tail, dense, strict=True):
        torch.testing.assert_close(got, want)


def test_a_bucket_stays_where_only_a_neighbour_has_every_token() -> None:
    """K = V because one state keeps all tokens: the narrow states of the batch still have a tail."""
    world = builders.make_world(seed=4, lengths=(3, 3), finished=(True, True), vocab=4, p=0.9)
    world.teacher_logp[0, 0] = torch.full((4,), 0.25, dtype=torch.float64).log()
    steps = builders.steps_of(world)
    assert steps.legal_t.shape[-1] == 4
    assert not steps.legal_t.all()
    builders.assert_equals_oracle(world, loss("tail"), oracles.forward_kl)


@settings(max_examples=25, deadline=None)
@given(world=builders.worlds())
def test_coarsening_loses_exactly_what_it_hides(world: builders.World) -> None:
    """Chain rule: dense = tail + (1−m*)·KL within the tail ≥ tail = KL(Bernoulli(m*)‖Bernoulli(m)) + m*·proj."""
    dense, tail, proj = (builders.loss_and_grads(world, loss(s))[0] for s in ("dense", "tail", "proj"))
    for b, response in enumerate(world.responses()):
        for t in range(len(response)):
            inside = response.candidates[t]
            outside = [a for a in range(6) if a not in inside]
            rows = oracles.teacher_and_student(response, t, "dense")
            within, rest = (sum(rows[0][a].exp().item() for a in side) for side in (inside, outside))
            hidden = oracles.kl(*(oracles.log_softmax([row[a] for a in outside]) for row in rows)).item() if outside else 0.0
            masses = oracles.anchor_term(response, t, "tail").item()
            assert dense[b, t].item() == pytest.approx(tail[b, t].item() + rest * hidden, abs=1e-9)
            assert tail[b, t].item() == pytest.approx(masses + within * proj[b, t].item(), abs=1e-9)
            assert dense[b, t] >= tail[b, t] - 1e-9 >= -2e-9


def test_the_projection_is_blind_to_leaked_mass_and_the_bucket_is_not() -> None:
    world = builders.make_world(seed=5, lengths=(1,), finished=(True,), vocab=8)
    outside = [a for a in range(8) if a not in world.responses()[0].candidates[0]]
    leaky = replace(world, logits=world.logits.detach().clone().index_fill(2, torch.tensor(outside), 9.0).requires_grad_())
    before, after = ([builders.loss_and_grads(w, loss(s))[0].item() for s in SUPPORTS] for w in (world, leaky))
    assert after[1] == pytest.approx(before[1], abs=1e-12)
    assert after[0] > before[0] + 1
    assert after[2] > before[2] + 1


def test_temperature_flattens_both() -> None:
    """At a high temperature both are near uniform, and T² times the loss tends to half the variance of the logit gap."""
    world = builders.make_world(seed=6, lengths=(2,), finished=(True,))
    gap = (world.logits - world.teacher_logp)[0].detach()
    loss_t = builders.loss_and_grads(world, loss("dense", 1000.0))[0][0]
    torch.testing.assert_close(loss_t * 1000.0**2, gap.var(-1, correction=0) / 2, rtol=2e-2, atol=0)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("bad", [0.5, 2.0])
def test_a_temperature_with_a_tail_bucket_is_refused(name: str, bad: float) -> None:
    with pytest.raises(ConfigError, match=r"loss_temperature.*tail.*proj.*dense"):
        bind(name, loss_temperature=bad)


@pytest.mark.parametrize(("support", "needs"), [("tail", {"log_z"}), ("proj", set()), ("dense", {"dense"})])
def test_needs_no_more_than_it_reads(support: str, needs: set[str]) -> None:
    bound = loss(support)
    assert bound.needs == needs
    full, lean = (builders.steps_of(builders.make_world(), needs=n) for n in (builders.EVERY_NEED, bound.needs))
    assert torch.equal(bound(lean).loss_t, bound(full).loss_t)


@pytest.mark.parametrize("support", SUPPORTS)
@settings(max_examples=15, deadline=None)
@given(world=builders.worlds(), pad_t=st.integers(0, 3), pad_k=st.integers(0, 3), junk=st.sampled_from([0.0, -90.0, 1e4]))
def test_padding_changes_nothing(support: str, world: builders.World, pad_t: int, pad_k: int, junk: float) -> None:
    builders.assert_padding_invariant(world, loss(support), pad_t, pad_k, junk)


@pytest.mark.parametrize("support", ["tail", "proj"])
def test_masked_slots_get_no_gradient(support: str) -> None:
    builders.assert_masked_gradient_is_zero(builders.make_world(), loss(support))


@pytest.mark.parametrize("support", SUPPORTS)
def test_extreme_logits_stay_finite(support: str) -> None:
    builders.assert_finite_at_extremes(loss(support))


@pytest.mark.parametrize("support", SUPPORTS)
def test_gradcheck(support: str) -> None:
    builders.assert_gradcheck(builders.make_world(), loss(support))
