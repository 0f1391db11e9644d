"""Mean actor-critic against its recursion, its reductions, and exact enumeration of every text that a small policy can write."""

import itertools
import math
from typing import Any

import builders
import oracles_returns
import pytest
import torch
from pairwise import pairwise
from test_actor_critic_enumeration import DEPTH, VOCAB, Tree

from tdistill.mdp.steps import Steps
from tdistill.objectives import bind

SUPPORTS = ["tail", "proj", "uniform", "dense"]
COSTS = ["reverse_kl", "jsd", "skew_kl"]
KNOBS = pairwise(
    dict(zip(("support", "gamma", "lambda_", "center"), values, strict=True))
    for values in itertools.product(SUPPORTS, [0.0, 0.9, 1.0], [0.0, 0.6, 1.0], [0.0, 1.0])
)


def oracle(world: builders.World, **knobs: Any) -> Any:
    rows = iter(world.behaviour_logp.tolist())
    return lambda response: [step.loss for step in oracles_returns.mean_actor_critic(response, next(rows)[: len(response)], **knobs)]


@pytest.fixture
def world() -> builders.World:
    """Off-support tokens, one cut-off, and a token that nobody sampled."""
    made = builders.make_world(seed=21, lengths=(6, 4, 2), finished=(True, False, True), p=0.8)
    made.behaviour_logp[0, 2] = torch.nan
    return made


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda k: "-".join(map(str, k.values())))
def test_equals_the_oracle(world: builders.World, knobs: dict[str, Any]) -> None:
    builders.assert_equals_oracle(world, bind("mean_actor_critic", value_coef=0.3, **knobs), oracle(world, value_coef=0.3, **knobs))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_costs_equal_the_oracle(world: builders.World, cost: str, dtype: torch.dtype) -> None:
    builders.assert_equals_oracle(world, bind("mean_actor_critic", cost=cost), oracle(world, gamma=0.9, cost=cost), dtype)


def test_metrics_equal_the_oracle(world: builders.World) -> None:
    metrics = bind("mean_actor_critic", lambda_=0.6)(builders.steps_of(world)).metrics
    assert not any(x.requires_grad for x in metrics.values())
    for b, response in enumerate(world.responses()):
        behaviour = world.behaviour_logp[b].tolist()[: len(response)]
        for t, step in enumerate(oracles_returns.mean_actor_critic(response, behaviour, gamma=0.9, lambda_=0.6)):
            token, odds = response.tokens[t], {a: response.logits[t][a].exp().item() for a in response.candidates[t]}
            variance = sum(o * (response.action_value[t][a].item() - step.mean) ** 2 for a, o in odds.items()) / sum(odds.values())
            want = {
                "td/v": step.mean,
                "td/reward": -step.cost.item(),
                "td/bellman_error": math.nan if step.target is None else (response.action_value[t][token].item() - step.target) ** 2,
                "td/advantage_std": math.sqrt(variance),
                "td/trace": math.nan if step.trace is None else step.trace,
                "td/off_support_fraction": float(token not in response.candidates[t]),
            }
            assert {key: x[b, t].item() for key, x in metrics.items()} == pytest.approx(want, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("cost", COSTS)
def test_gamma_0_is_the_divergence_by_itself(world: builders.World, cost: str) -> None:
    alone = builders.loss_and_grads(world, bind("mean_actor_critic", gamma=0.0, value_coef=0.0, cost=cost))
    for a, b in zip(alone, builders.loss_and_grads(world, bind(cost)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_critic_that_values_all_tokens_alike_moves_nothing(world: builders.World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start, where the head is 0, and with any v(s) that is no w(s,a)."""
    monkeypatch.setattr(builders.World, "action_value", property(lambda self: self.value.unsqueeze(-1).expand_as(self.logits)))
    got = builders.loss_and_grads(world, bind("mean_actor_critic", value_coef=0.0))
    for a, b in zip(got, builders.loss_and_grads(world, bind("reverse_kl")), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


# --- every text of a small tree --------------------------------------------------------------------------------------


def exact_action_values(tree: Tree, support: str, gamma: float) -> torch.Tensor:
    """w(s,a) = −D(s·a) + γu(s·a), and 0 for the token that ends the text."""
    paid, u = tree.divergence(support).detach(), tree.exact_values(support, gamma)
    w = torch.zeros(len(tree.nodes), VOCAB, dtype=torch.float64)
    for (i, node), a in itertools.product(enumerate(tree.nodes), range(VOCAB)):
        if (*node, a) in tree.nodes:
            child = tree.nodes.index((*node, a))
            w[i, a] = -paid[child] + gamma * u[child]
    return w


def expected_gradients(tree: Tree, behaviour: torch.Tensor, w: torch.Tensor, gamma: float, **knobs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of the loss's gradients for logits and w over every text, each as likely as ``behaviour`` writes it, state t weighed by γ^t."""
    ids = torch.tensor([tree.path(text) + [0] * (DEPTH - len(text)) for text in tree.texts])
    tokens = torch.tensor([[*text, *[0] * (DEPTH - len(text))] for text in tree.texts])
    mask = torch.arange(DEPTH) < torch.tensor([len(text) for text in tree.texts]).unsqueeze(-1)
    written = behaviour[ids].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    logits = tree.logits[ids]
    every = mask.unsqueeze(-1).expand_as(logits)
    steps = Steps(
        q_t=logits,
        log_z_t=logits.logsumexp(-1),
        max_t=None,
        teacher_logp_t=tree.teacher[ids].masked_fill(~every, -torch.inf),
        legal_t=every,
        a_t=tokens.where(mask, -1),
        mask_t=mask,
        terminal_t=mask & (torch.arange(DEPTH) == mask.sum(-1, keepdim=True) - 1),
        taken_logit_t=logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1),
        behaviour_logp_t=written,
        action_value_t=w[ids],
        vocab_size=VOCAB,
    )
    weight = torch.where(mask, written, 0.0).sum(-1).exp().unsqueeze(-1) * gamma ** torch.arange(DEPTH, dtype=torch.float64)
    loss_t = bind("mean_actor_critic", gamma=gamma, center=0.0, cost=tree.cost, **knobs)(steps).loss_t
    return torch.autograd.grad(torch.where(mask, weight * loss_t, 0.0).sum(), (tree.logits, w))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_with_a_right_critic_it_is_the_gradient_of_the_texts_divergence(gamma: float, lambda_: float, cost: str) -> None:
    """On the student's own text, every token a candidate; and a right critic has nothing to learn, on whoever's text."""
    tree = Tree(seed=1, p=1.0, cost=cost)
    w = exact_action_values(tree, "tail", gamma).requires_grad_()
    own = tree.logits.detach().log_softmax(-1)
    grad, grad_w = expected_gradients(tree, own, w, gamma, lambda_=lambda_)
    (want,) = torch.autograd.grad(tree.objective("tail", gamma), tree.logits)
    torch.testing.assert_close(grad, want, atol=1e-12, rtol=0)
    assert grad_w.abs().max() < 1e-12
    off_policy, still = expected_gradients(tree, tree.behaviour, w, gamma, lambda_=lambda_)
    torch.testing.assert_close(off_policy[0], want[0], atol=1e-12, rtol=0)
    assert still.abs().max() < 1e-12


def test_the_actor_has_no_noise_of_the_token_taken() -> None:
    """Two texts that part at the last token have the same gradient at the states they share, where ``actor_critic``'s differ."""
    made = builders.make_world(seed=4, lengths=(2, 2), finished=(True, True), p=1.0)
    for field in (made.logits, made.value, made.teacher_logp):
        field.data[1] = field.data[0]
    made.tokens[0], made.tokens[1] = torch.tensor([0, 1]), torch.tensor([2, 1])
    grads = {name: builders.loss_and_grads(made, bind(name, value_coef=0.0))[1] for name in ("mean_actor_critic", "actor_critic")}
    torch.testing.assert_close(grads["mean_actor_critic"][0], grads["mean_actor_critic"][1], atol=1e-12, rtol=0)
    assert (grads["actor_critic"][0] - grads["actor_critic"][1]).abs().max() > 1e-3
