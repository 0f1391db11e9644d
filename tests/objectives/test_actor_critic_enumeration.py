"""Actor-critic divergences against exact enumeration of every text that a small policy can write."""

import itertools
from typing import Any

import builders
import oracles
import oracles_returns
import pytest
import torch
from torch import Tensor

from tdistill.objectives import bind

SUPPORTS = ["tail", "proj", "uniform", "dense"]
EOS, DEPTH, VOCAB = 0, 3, 3


class Tree:
    """Every text over {EOS, 1, 2} of up to three tokens, the third of which ends it: seven states, fifteen texts."""

    def __init__(self, seed: int, p: float = 0.6, cost: str = "reverse_kl"):
        g = torch.Generator().manual_seed(seed)
        self.nodes = [prefix for n in range(DEPTH) for prefix in itertools.product(range(1, VOCAB), repeat=n)]
        self.logits = torch.randn(len(self.nodes), VOCAB, generator=g, dtype=torch.float64).requires_grad_()
        self.teacher = (2 * torch.randn(len(self.nodes), VOCAB, generator=g, dtype=torch.float64)).log_softmax(-1)
        self.behaviour = torch.randn(len(self.nodes), VOCAB, generator=g, dtype=torch.float64).log_softmax(-1)
        self.value = torch.randn(len(self.nodes), generator=g, dtype=torch.float64).requires_grad_()
        self.p, self.cost = p, cost
        self.texts = [(*prefix, a) for prefix in self.nodes for a in range(VOCAB) if a == EOS or len(prefix) == DEPTH - 1]

    def path(self, text: tuple[int, ...]) -> list[int]:
        return [self.nodes.index(text[:t]) for t in range(len(text))]

    def divergence(self, support: str) -> Tensor:
        rows = self.teacher.tolist()
        response = oracles.Response(
            logits=[list(row) for row in self.logits],
            teacher=rows,
            tokens=[EOS] * len(rows),
            finished=True,
            candidates=[oracles.top_p_set(row, self.p) for row in rows],
            value=list(self.value),
        )
        return torch.stack(oracles_returns.COSTS[self.cost](response, support=support))

    def exact_values(self, support: str, gamma: float) -> Tensor:
        """u(s) = Σ_a π(a|s) G(s·a),  G(s) = −D(s) + γu(s),  0 after EOS: deepest states first."""
        policy, paid = self.logits.detach().softmax(-1), self.divergence(support).detach()
        u = torch.zeros(len(self.nodes), dtype=torch.float64)
        for i in reversed(range(len(self.nodes))):
            for a in range(VOCAB):
                child = (*self.nodes[i], a)
                if child in self.nodes:
                    j = self.nodes.index(child)
                    u[i] += policy[i, a] * (-paid[j] + gamma * u[j])
        return u

    def objective(self, support: str, gamma: float) -> Tensor:
        """Σ_s P(s) γ^t D(s), differentiable in how likely each state is to be reached."""
        log_pi, total = self.logits.log_softmax(-1), torch.zeros((), dtype=torch.float64)
        for node, paid in zip(self.nodes, self.divergence(support), strict=True):
            reach = sum((log_pi[i, a] for i, a in zip(self.path(node), node, strict=True)), torch.zeros(()))
            total = total + reach.exp() * gamma ** len(node) * paid
        return total

    def expected_gradients(self, behaviour: Tensor, gamma: float, **knobs: Any) -> tuple[Tensor, Tensor]:
        """The mean of the loss's gradients over every text, each as likely as ``behaviour`` writes it, state t weighed by γ^t."""
        ids = torch.tensor([self.path(text) + [0] * (DEPTH - len(text)) for text in self.texts])
        tokens = torch.tensor([[*text, *[0] * (DEPTH - len(text))] for text in self.texts])
        behaviour_logp = behaviour[ids].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        lengths = tuple(len(text) for text in self.texts)
        made = builders.World(
            logits=self.logits[ids],
            value=self.value[ids],
            teacher_logp=self.teacher[ids],
            tokens=tokens,
            lengths=lengths,
            finished=(True,) * len(lengths),
            p=self.p,
            behaviour_logp=behaviour_logp,
            expert=(False,) * len(lengths),
        )
        steps = builders.steps_of(made)
        likelihood = torch.where(made.mask, behaviour_logp, 0.0).sum(-1).exp()
        assert likelihood.sum().item() == pytest.approx(1.0, abs=1e-12)
        weight = likelihood.unsqueeze(-1) * gamma ** torch.arange(DEPTH, dtype=torch.float64)
        loss_t = bind("actor_critic", gamma=gamma, rho_max=float("inf"), center=0.0, cost=self.cost, **knobs)(steps).loss_t
        return torch.autograd.grad(torch.where(made.mask, weight * loss_t, 0.0).sum(), (self.logits, self.value))


@pytest.mark.parametrize("cost", ["reverse_kl", "jsd", "skew_kl"])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize(("lambda_", "critic"), [(1.0, "random"), (1.0, "exact"), (0.6, "exact"), (0.0, "exact")])
def test_on_policy_it_is_the_gradient_of_the_texts_divergence(support: str, gamma: float, lambda_: float, critic: str, cost: str) -> None:
    """With λ = 1 whatever the critic says (a baseline), with λ < 1 where the critic is right; a right one has nothing to learn."""
    tree = Tree(seed=1, cost=cost)
    if critic == "exact":
        tree.value.data.copy_(tree.exact_values(support, gamma))
    on_policy = tree.logits.detach().log_softmax(-1)
    grad, grad_v = tree.expected_gradients(on_policy, gamma, support=support, lambda_=lambda_)
    (want,) = torch.autograd.grad(tree.objective(support, gamma), tree.logits)
    (single_step,) = torch.autograd.grad(tree.divergence(support)[0], tree.logits)
    assert (want - single_step)[0].abs().max() > 1e-3  # the long-term term is there
    torch.testing.assert_close(grad, want, atol=1e-12, rtol=0)
    assert (grad_v.abs().max() < 1e-12) == (critic == "exact")


@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize(("lambda_", "critic"), [(1.0, "random"), (0.6, "exact"), (0.0, "exact")])
def test_off_policy_the_ratios_correct_the_actor_and_the_critic(gamma: float, lambda_: float, critic: str) -> None:
    """On another policy's texts: the gradient at the first state is that of the student's own objective, and the values of the
    student, not of the writer, are the critic's fixed point."""
    tree = Tree(seed=2)
    if critic == "exact":
        tree.value.data.copy_(tree.exact_values("tail", gamma))
    grad, grad_v = tree.expected_gradients(tree.behaviour, gamma, lambda_=lambda_)
    (want,) = torch.autograd.grad(tree.objective("tail", gamma), tree.logits)
    torch.testing.assert_close(grad[0], want[0], atol=1e-12, rtol=0)
    assert (grad_v.abs().max() < 1e-12) == (critic == "exact")
