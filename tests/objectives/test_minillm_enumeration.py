"""MiniLLM's policy gradient against exact enumeration of every text that a small policy can write."""

from typing import Any

import builders
import pytest
import torch
from test_actor_critic_enumeration import DEPTH, SUPPORTS, Tree
from torch import Tensor

from tdistill.objectives import bind

FREE = {"length_normalization": False, "clip_epsilon": float("inf")}
ALPHA = 0.2  # the teacher's share of the mixture, Gu et al. 2024, section 3.1


def every_text(tree: Tree, writer: Tensor) -> tuple[builders.World, Tensor]:
    """All texts as one batch, and how likely ``writer`` makes each."""
    ids = torch.tensor([tree.path(text) + [0] * (DEPTH - len(text)) for text in tree.texts])
    tokens = torch.tensor([[*text, *[0] * (DEPTH - len(text))] for text in tree.texts])
    made = builders.World(
        logits=tree.logits[ids],
        value=tree.value[ids],
        teacher_logp=tree.teacher[ids],
        tokens=tokens,
        lengths=tuple(len(text) for text in tree.texts),
        finished=(True,) * len(tree.texts),
        p=tree.p,
        behaviour_logp=writer[ids].gather(-1, tokens.unsqueeze(-1)).squeeze(-1),
        expert=(False,) * len(tree.texts),
    )
    return made, torch.where(made.mask, made.behaviour_logp, 0.0).sum(-1).exp()


def expected_gradient(tree: Tree, writer: Tensor, name: str = "minillm", discount: float = 1.0, **knobs: Any) -> Tensor:
    """The mean of the loss's gradients over every text, state t weighed by ``discount``^t."""
    made, likelihood = every_text(tree, writer)
    assert likelihood.sum().item() == pytest.approx(1.0, abs=1e-12)
    loss_t = bind(name, **knobs)(builders.steps_of(made)).loss_t
    weight = likelihood.unsqueeze(-1) * discount ** torch.arange(DEPTH, dtype=torch.float64)
    return torch.autograd.grad(torch.where(made.mask, weight * loss_t, 0.0).sum(), tree.logits)[0]


def on_policy(tree: Tree) -> Tensor:
    return tree.logits.detach().log_softmax(-1)


def mixture(tree: Tree) -> Tensor:
    """log(α·p + (1−α)·q)."""
    return (ALPHA * tree.teacher.exp() + (1 - ALPHA) * on_policy(tree).exp()).log()


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_on_policy_it_is_the_gradient_of_the_sequence_level_reverse_kl(gamma: float) -> None:
    tree = Tree(seed=1)
    got = expected_gradient(tree, on_policy(tree), discount=gamma, gamma=gamma, support="dense", **FREE)
    (want,) = torch.autograd.grad(tree.objective("dense", gamma), tree.logits)
    (single_step,) = torch.autograd.grad(tree.divergence("dense")[0], tree.logits)
    assert (want - single_step)[0].abs().max() > 1e-2  # the long-term term is there
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_the_sequence_level_reverse_kl_is_that_of_whole_texts() -> None:
    """Σ_y q(y) log q(y)/p(y), with no state in sight."""
    tree = Tree(seed=1)
    total = torch.zeros((), dtype=torch.float64)
    log_q = tree.logits.log_softmax(-1)
    for text in tree.texts:
        pairs = list(zip(tree.path(text), text, strict=True))
        log_qy, log_py = (sum((row[i, a] for i, a in pairs), torch.zeros(())) for row in (log_q, tree.teacher))
        total = total + log_qy.exp() * (log_qy - log_py)
    (want,) = torch.autograd.grad(total, tree.logits)
    torch.testing.assert_close(expected_gradient(tree, on_policy(tree), support="dense", **FREE), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_on_policy_it_is_actor_critic_without_a_critic(gamma: float) -> None:
    tree = Tree(seed=3)
    tree.value.data.zero_()
    critic, _ = tree.expected_gradients(on_policy(tree), gamma, support="dense", lambda_=1.0, value_coef=0.0)
    got = expected_gradient(tree, on_policy(tree), discount=gamma, gamma=gamma, support="dense", **FREE)
    torch.testing.assert_close(got, critic, atol=1e-12, rtol=0)


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_support_changes_the_single_step_term_alone(support: str) -> None:
    tree = Tree(seed=1)
    gradients = {
        (name, s): expected_gradient(tree, on_policy(tree), name, support=s, **(FREE if name == "minillm" else {}))
        for name in ("minillm", "reverse_kl")
        for s in (support, "dense")
    }
    long_term, dense_long_term = (gradients["minillm", s] - gradients["reverse_kl", s] for s in (support, "dense"))
    torch.testing.assert_close(long_term, dense_long_term, atol=1e-12, rtol=0)
    assert long_term.abs().max() > 1e-2


def test_teacher_mixed_sampling_bounds_the_weights() -> None:
    tree = Tree(seed=2)
    made, _ = every_text(tree, mixture(tree))
    ratio = bind("minillm")(builders.steps_of(made)).metrics["minillm/ratio"][made.mask]
    assert 1.0 < ratio.max() <= 1 / (1 - ALPHA)


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_weight_of_the_single_step_term_averages_to_1(support: str) -> None:
    """The divergence belongs to the state, the weight to the token drawn there: in expectation it changes nothing."""
    tree = Tree(seed=2)
    weighted = expected_gradient(tree, mixture(tree), gamma=0.0, support=support)
    torch.testing.assert_close(weighted, expected_gradient(tree, mixture(tree), "reverse_kl", support=support), atol=1e-12, rtol=0)


def test_the_papers_approximations_cost_bias() -> None:
    """Weights of one step leave the mixture's later tokens uncorrected; the mean of later rewards is not their sum."""
    tree = Tree(seed=2)
    (want,) = torch.autograd.grad(tree.objective("dense", 1.0), tree.logits)
    mixed = expected_gradient(tree, mixture(tree), support="dense", **FREE)
    normalised = expected_gradient(tree, on_policy(tree), support="dense")
    for biased in (mixed, normalised):
        assert (biased - want)[0].abs().max() > 1e-2
