"""KL(student ‖ teacher) on the candidates with a tail bucket, on the projection, and on the whole vocabulary."""

from dataclasses import replace

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.objectives import bind

SETTINGS = [("tail", 1.0), ("proj", 1.0), ("proj", 0.5), ("proj", 2.0), ("dense", 1.0), ("dense", 0.5), ("dense", 2.0)]
SUPPORTS = ["tail", "proj", "dense"]


def loss(support: str, loss_temperature: float = 1.0) -> builders.Loss:
    return bind("reverse_kl", support=support, loss_temperature=loss_temperature)


def swapped(world: builders.World) -> builders.World:
    """Student and teacher with their roles exchanged, on all tokens (p = 1)."""
    student = world.logits.detach().log_softmax(-1)
    return replace(world, logits=world.teacher_logp.clone().requires_grad_(), teacher_logp=student)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("p", [0.05, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("support", "temperature"), SETTINGS)
def test_equals_the_oracle(support: str, temperature: float, p: float, dtype: torch.dtype) -> None:
    world = builders.make_world(seed=11, lengths=(4, 2, 3), finished=(True, False, True), p=p)
    oracle = lambda r: oracles.reverse_kl(r, support=support, loss_temperature=temperature)  # noqa: E731
    builders.assert_equals_oracle(world, loss(support, temperature), oracle, dtype)


@pytest.mark.parametrize("support", SUPPORTS)
def test_is_the_forward_kl_with_the_roles_exchanged(support: str) -> None:
    world = builders.make_world(seed=12, p=1.0)
    ours = builders.loss_and_grads(world, loss(support))[0]
    theirs = builders.loss_and_grads(swapped(world), bind("forward_kl", support=support))[0]
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    other_way = builders.loss_and_grads(world, bind("forward_kl", support=support))[0]
    assert (ours - other_way)[world.mask].abs().min() > 1e-3


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_perfect_student_pays_nothing(support: str) -> None:
    world = builders.make_world(seed=13)
    world.logits.data.copy_(world.teacher_logp + 2.5)
    loss_t, grad, _ = builders.loss_and_grads(world, loss(support))
    assert loss_t.abs().max() < 1e-12
    assert grad.abs().max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(world=builders.worlds())
def test_coarsening_loses_exactly_what_it_hides(world: builders.World) -> None:
    """Chain rule with the student's masses: dense = tail + (1−m)·KL(student ‖ teacher within the tail) ≥ tail ≥ 0."""
    dense, tail = (builders.loss_and_grads(world, loss(s))[0] for s in ("dense", "tail"))
    for b, response in enumerate(world.responses()):
        for t in range(len(response)):
            outside = [a for a in range(6) if a not in response.candidates[t]]
            teacher, student = oracles.teacher_and_student(response, t, "dense")
            rest = sum(student[a].exp().item() for a in outside)
            rows = [oracles.log_softmax([row[a] for a in outside]) for row in (student, teacher)] if outside else [[], []]
            assert dense[b, t].item() == pytest.approx(tail[b, t].item() + rest * oracles.kl(*rows).item(), abs=1e-9)
            assert dense[b, t] >= tail[b, t] - 1e-9 >= -2e-9


def test_a_bucket_stays_where_only_a_neighbour_has_every_token() -> None:
    """K = V because one state keeps all tokens: the narrow states of the batch still have a tail."""
    world = builders.make_world(seed=4, lengths=(3, 3), finished=(True, True), vocab=4, p=0.9)
    world.teacher_logp[0, 0] = torch.full((4,), 0.25, dtype=torch.float64).log()
    builders.assert_equals_oracle(world, loss("tail"), oracles.reverse_kl)


def test_seeks_a_mode_where_the_forward_kl_covers() -> None:
    """Two equal modes: a student on one of them pays log 2 here, far more to the forward KL than a broad student does."""
    world = builders.make_world(vocab=4, lengths=(1,), finished=(True,), p=1.0)
    world.teacher_logp[0, 0] = torch.tensor([0.49995, 0.49995, 0.00005, 0.00005], dtype=torch.float64).log()
    pointed, broad = torch.tensor([20.0, 0.0, 0.0, 0.0]), torch.zeros(4)

    def pay(logits: torch.Tensor, name: str) -> float:
        world.logits.data[0, 0] = logits.double()
        return builders.loss_and_grads(world, bind(name, support="dense"))[0].item()

    assert pay(pointed, "reverse_kl") == pytest.approx(0.6932, abs=1e-3)
    assert pay(pointed, "reverse_kl") < pay(broad, "reverse_kl")
    assert pay(pointed, "forward_kl") > pay(broad, "forward_kl")


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
