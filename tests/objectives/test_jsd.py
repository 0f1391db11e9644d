"""Generalised Jensen-Shannon divergence: its ends, its symmetry, its bound."""

from dataclasses import replace

import builders
import oracles_divergences as divergences
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError

SUPPORTS = ["tail", "proj", "uniform", "dense"]


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(("beta", "same_as"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_ends_are_the_kl_divergences(beta: float, same_as: str, support: str) -> None:
    world = builders.make_world(seed=31)
    ours, theirs = (builders.loss_and_grads(world, bind(n, support=support, **a)) for n, a in (("jsd", {"beta": beta}), (same_as, {})))
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("same_as", ["forward_kl", "reverse_kl"])
def test_near_its_ends_it_is_a_small_share_of_them(same_as: str) -> None:
    """loss/β → KL(p‖q) as β → 0, loss/(1−β) → KL(q‖p) as β → 1: the value jumps at the ends, the direction does not."""
    world = builders.make_world(seed=32)
    want = builders.loss_and_grads(world, bind(same_as))
    for tiny in (1e-4, 1e-6):
        got = builders.loss_and_grads(world, bind("jsd", beta=tiny if same_as == "forward_kl" else 1 - tiny))
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours / tiny, theirs, atol=100 * tiny, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_is_at_most_the_entropy_of_its_weights(beta: float) -> None:
    """And reaches it where teacher and student share no token."""
    bound = divergences.entropy(beta)
    apart = builders.make_world(vocab=4, lengths=(1,), finished=(True,), p=1.0)
    apart = replace(apart, teacher_logp=torch.tensor([[[0.5, 0.5, 0, 0]]], dtype=torch.float64).log())
    apart.logits.data[0, 0] = torch.tensor([-1e3, -1e3, 0.0, 0.0], dtype=torch.float64)
    assert builders.loss_and_grads(apart, bind("jsd", beta=beta, support="dense"))[0].item() == pytest.approx(bound, abs=1e-12)
    for support in SUPPORTS:
        assert builders.loss_and_grads(builders.extreme_world(0), bind("jsd", beta=beta, support=support))[0].max() <= bound + 1e-12


def test_a_uniform_teacher_and_a_certain_student() -> None:
    """log 2 − ((V+1)·log(V+1) − V·log V) / (2V) for V tokens, from M = 1/(2V) but (V+1)/(2V) at the student's."""
    vocab = 4
    world = builders.make_world(vocab=vocab, lengths=(1,), finished=(True,), p=1.0)
    world = replace(world, teacher_logp=torch.full((1, 1, vocab), 1 / vocab, dtype=torch.float64).log())
    world.logits.data[0, 0] = torch.tensor([1e3, 0.0, 0.0, 0.0], dtype=torch.float64)
    v = torch.tensor(float(vocab), dtype=torch.float64)
    closed = torch.log(2 * torch.ones_like(v)) - ((v + 1) * torch.log(v + 1) - v * torch.log(v)) / (2 * v)
    assert builders.loss_and_grads(world, bind("jsd"))[0].item() == pytest.approx(closed.item(), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(world=builders.worlds(), beta=st.floats(0.01, 0.99))
def test_the_weight_of_the_teacher_is_beta(world: builders.World, beta: float) -> None:
    """As in TRL: log M = log(β·p + (1−β)·q), and β weighs KL(p‖M)."""
    p, q = world.teacher_logp, world.logits.detach().log_softmax(-1)
    log_m = torch.logaddexp(p + torch.tensor(beta).double().log(), q + torch.tensor(-beta).double().log1p())
    want = beta * (p.exp() * (p - log_m)).sum(-1) + (1 - beta) * (q.exp() * (q - log_m)).sum(-1)
    got = builders.loss_and_grads(world, bind("jsd", beta=beta, support="dense"))[0]
    torch.testing.assert_close(got[world.mask], want[world.mask], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match=r"beta of jsd must lie in \[0, 1\], got"):
        bind("jsd", beta=bad)
