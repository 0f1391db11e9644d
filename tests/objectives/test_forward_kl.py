"""KL(teacher ‖ student): what the tail bucket and the projection hide. What all divergences share: test_divergences.py."""

from dataclasses import replace

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings

from tdistill.objectives import bind

SUPPORTS = ["tail", "proj", "uniform", "dense"]


def loss(support: str, loss_temperature: float = 1.0) -> builders.Loss:
    return bind("forward_kl", support=support, loss_temperature=loss_temperature)


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
