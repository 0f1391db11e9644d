"""Actor-critic reverse KL against its recursion, its reductions and its conventions."""

import itertools
from dataclasses import replace
from typing import Any

import builders
import oracles
import oracles_returns
import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from tdistill.objectives import bind

SUPPORTS = ["tail", "proj", "uniform", "dense"]
KNOBS = pairwise(
    dict(zip(("support", "gamma", "lambda_", "rho_max"), values, strict=True))
    for values in itertools.product(SUPPORTS, [0.0, 0.9, 1.0], [0.0, 0.6, 1.0], [0.5, 1.0, 8.0])
)


def knob_id(knobs: dict[str, Any]) -> str:
    return "-".join(str(v) for v in knobs.values())


def oracle(world: builders.World, **knobs: Any) -> Any:
    rows = iter(world.behaviour_logp.tolist())
    return lambda response: [step.loss for step in oracles_returns.actor_critic(response, next(rows)[: len(response)], **knobs)]


def loss_of(world: builders.World, **knobs: Any) -> Tensor:
    return builders.loss_and_grads(world, bind("actor_critic", **knobs))[0]


@pytest.fixture
def world() -> builders.World:
    """Off-support tokens, one cut-off, and a token that nobody sampled."""
    made = builders.make_world(seed=21, lengths=(6, 4, 2), finished=(True, False, True), p=0.8)
    made.behaviour_logp[0, 2] = torch.nan
    return made


# --- the loops -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", KNOBS, ids=knob_id)
def test_equals_the_oracle(world: builders.World, knobs: dict[str, Any]) -> None:
    builders.assert_equals_oracle(world, bind("actor_critic", value_coef=0.3, **knobs), oracle(world, value_coef=0.3, **knobs))


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("center", [0.5, 1.0])
def test_centred_equals_the_oracle(world: builders.World, support: str, gamma: float, center: float) -> None:
    knobs = {"gamma": gamma, "lambda_": 0.6, "support": support, "center": center}
    builders.assert_equals_oracle(world, bind("actor_critic", **knobs), oracle(world, **knobs))


@pytest.mark.parametrize("cost", ["jsd", "skew_kl"])
@pytest.mark.parametrize("support", SUPPORTS)
def test_other_costs_equal_the_oracle(world: builders.World, support: str, cost: str) -> None:
    knobs = {"gamma": 0.9, "lambda_": 0.6, "support": support, "cost": cost}
    builders.assert_equals_oracle(world, bind("actor_critic", **knobs), oracle(world, **knobs))


@pytest.mark.parametrize("cost", ["reverse_kl", "jsd", "skew_kl"])
def test_gamma_0_is_the_divergence_by_itself(world: builders.World, cost: str) -> None:
    alone = builders.loss_and_grads(world, bind("actor_critic", gamma=0.0, value_coef=0.0, cost=cost))
    for a, b in zip(alone, builders.loss_and_grads(world, bind(cost)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_centred_ending_early_saves_nothing() -> None:
    """Under equal divergences at every step all centred returns are 0, and the long-term term with them."""
    made = builders.make_world(seed=3, lengths=(4,), finished=(True,), p=1.0)
    made.logits.data.copy_(made.logits[:, :1].expand(1, 4, -1).clone())
    made = replace(made, teacher_logp=made.teacher_logp[:, :1].expand(1, 4, -1).clone())
    made.value.data.zero_()
    kl = builders.loss_and_grads(made, bind("reverse_kl"))
    centred, total = (builders.loss_and_grads(made, bind("actor_critic", gamma=1.0, value_coef=0.0, center=c)) for c in (1.0, 0.0))
    torch.testing.assert_close(centred[0], kl[0])
    torch.testing.assert_close(centred[1], kl[1])
    assert ((total[0] - kl[0])[0, :3].abs() > 1e-3).all()


@pytest.mark.parametrize("support", SUPPORTS)
def test_equals_the_oracle_in_float32(world: builders.World, support: str) -> None:
    knobs = {"gamma": 0.9, "lambda_": 0.6, "support": support}
    builders.assert_equals_oracle(world, bind("actor_critic", **knobs), oracle(world, **knobs), torch.float32)


def test_metrics_equal_the_oracle(world: builders.World) -> None:
    metrics = bind("actor_critic", gamma=0.9, lambda_=0.6)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    nan = float("nan")
    for b, response in enumerate(world.responses()):
        behaviour = world.behaviour_logp[b].tolist()[: len(response)]
        for t, step in enumerate(oracles_returns.actor_critic(response, behaviour, gamma=0.9, lambda_=0.6)):
            want = {
                "td/v": response.value[t].item(),
                "td/reward": -step.kl.item(),
                "td/bellman_error": nan if step.advantage is None else step.advantage**2,
                "td/rho": nan if step.rho is None else step.rho,
                "td/off_support_fraction": float(response.tokens[t] not in response.candidates[t]),
            }
            assert {key: x[b, t].item() for key, x in metrics.items()} == pytest.approx(want, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("support", SUPPORTS)
def test_gradcheck(support: str) -> None:
    """Of the part without a stopped gradient: γ = 0 and no critic."""
    made = builders.make_world(seed=2, lengths=(3, 1), finished=(True, True), vocab=4)
    builders.assert_gradcheck(made, bind("actor_critic", gamma=0.0, value_coef=0.0, support=support))


# --- what it reduces to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", SUPPORTS)
def test_gamma_0_is_reverse_kl_and_a_value_term(world: builders.World, support: str) -> None:
    reverse = builders.loss_and_grads(world, bind("reverse_kl", support=support))
    alone = builders.loss_and_grads(world, bind("actor_critic", gamma=0.0, value_coef=0.0, support=support))
    for a, b in zip(alone, reverse, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    _, grad, grad_v = builders.loss_and_grads(world, bind("actor_critic", gamma=0.0, support=support))
    torch.testing.assert_close(grad, reverse[1], atol=1e-12, rtol=0)
    assert grad_v.ne(0).any()


def test_a_teacher_of_its_own_with_no_value_pays_nothing() -> None:
    made = builders.make_world(seed=3, lengths=(4, 3), finished=(True, False))
    made.logits.data.copy_(made.teacher_logp + 1.7)
    made.value.data.zero_()
    for x in builders.loss_and_grads(made, bind("actor_critic")):
        assert x.abs().max() < 1e-12


def test_p_1_is_the_dense_loss() -> None:
    made = builders.make_world(seed=5, lengths=(4, 2), finished=(True, False), p=1.0)
    for *others, dense in zip(*(builders.loss_and_grads(made, bind("actor_critic", support=s)) for s in SUPPORTS), strict=True):
        for other in others:
            torch.testing.assert_close(other, dense, atol=1e-12, rtol=0)


# --- conventions -----------------------------------------------------------------------------------------------------


def test_a_cut_off_bootstraps_from_its_last_state_and_an_end_is_worth_nothing() -> None:
    made = builders.make_world(seed=6, lengths=(2,), finished=(False,))
    made.behaviour_logp.fill_(torch.nan)
    kl = builders.loss_and_grads(made, bind("reverse_kl"))[0][0]
    log_pi, u = [-x.item() for x in oracles.nll(made.responses()[0])], made.value.detach()[0]
    cut = loss_of(made, gamma=0.9, lambda_=1.0, value_coef=0.0, center=0.0)[0]
    assert cut[0].item() == pytest.approx((kl[0] - 0.9 * (-kl[1] + 0.9 * u[1] - u[0]) * log_pi[0]).item(), abs=1e-12)
    assert cut[1] == kl[1]
    ended = loss_of(replace(made, finished=(True,)), gamma=0.9, lambda_=1.0, value_coef=0.0, center=0.0)[0]
    assert ended[0].item() == pytest.approx((kl[0] - 0.9 * (-kl[1] - u[0]) * log_pi[0]).item(), abs=1e-12)
    assert ended[1].item() == pytest.approx((kl[1] - 0.9 * (0.0 - u[1]) * log_pi[1]).item(), abs=1e-12)


def test_a_token_that_nobody_sampled_counts_as_on_policy(world: builders.World) -> None:
    log_pi = torch.tensor([[-x.item() for x in oracles.nll(r)] + [0.0] * (6 - len(r)) for r in world.responses()], dtype=torch.float64)
    on_policy = replace(world, behaviour_logp=log_pi)
    human = replace(world, behaviour_logp=torch.full_like(world.behaviour_logp, torch.nan))
    for a, b in zip(*(builders.loss_and_grads(w, bind("actor_critic")) for w in (on_policy, human)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_rho_is_truncated(world: builders.World) -> None:
    for rho_max in (0.5, 1.0, 1.5):
        rho = bind("actor_critic", rho_max=rho_max)(builders.steps_of(world)).metrics["td/rho"][world.mask]
        assert rho.nan_to_num().max() == rho_max
