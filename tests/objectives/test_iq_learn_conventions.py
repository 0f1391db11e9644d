"""Which steps of top-p inverse soft Q-learning pay, what the end is worth, the anchor and the clip."""

from dataclasses import replace
from typing import Any

import builders
import oracles
import pytest
import torch
from iq_learn_cases import bound, counted, every_kind_of_step, loss_of

from tdistill.objectives.parts.clip import clip_below


@pytest.fixture
def world() -> builders.World:
    return every_kind_of_step()


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
    loss_t = bound(estimator=estimator)(builders.steps_of(off)).loss_t
    assert torch.autograd.grad(loss_t[0, 1], made.logits, retain_graph=True)[0].eq(0).all()
    assert torch.autograd.grad(loss_t[0, 0], made.logits)[0][0, 1].ne(0).any()


def test_the_last_step_of_a_cut_off_pays_nothing_and_still_serves_the_one_before() -> None:
    made = builders.make_world(seed=6, lengths=(3,), finished=(False,), off_support=0.0)
    loss_t = bound()(builders.steps_of(made)).loss_t
    assert loss_t[0, 2] == 0
    assert torch.autograd.grad(loss_t[0, 2], made.logits, retain_graph=True)[0].eq(0).all()
    assert torch.autograd.grad(loss_t[0, 1], made.logits)[0][0, 2].ne(0).any()
    assert loss_of(replace(made, finished=(True,)))[0, 2] != 0


def test_the_end_is_worth_nothing_or_the_absorbing_value() -> None:
    """At the end r = Q − γ·V(terminal), V(terminal) = 0 or 2α/(1−γ); earlier steps are the same."""
    made = builders.make_world(seed=7, lengths=(3,), finished=(True,), off_support=0.0)
    knobs: dict[str, Any] = {"gamma": 0.9, "alpha": 0.5, "gauge": "lse"}
    zero, absorbing = (bound(terminal=t, **knobs)(builders.steps_of(made)).metrics["td/reward"][0] for t in ("zero", "absorbing"))
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
    loss_t, grad, _ = builders.loss_and_grads(replace(made, tokens=torch.tensor([[1]])), bound(**knobs))
    policy = torch.tensor([0.0, -5.0, -5.0], dtype=torch.float64).softmax(-1)
    assert loss_t.item() == pytest.approx(-policy[1].log().item(), abs=1e-12)
    assert grad[0, 0].tolist() == pytest.approx([policy[0].item(), policy[1].item() - 1.0, 0.0], abs=1e-12)


def test_no_clip_when_nothing_lies_below_the_floor(world: builders.World) -> None:
    for ours, free in zip(*(builders.loss_and_grads(world, bound(q_min=q_min)) for q_min in (-1e3, None)), strict=True):
        assert torch.equal(ours, free)
