"""The values that soft Q-learning finds on the teacher's text, with and without importance weights, against every text of a small policy."""

from typing import Any

import oracles
import pytest
import torch
from builders import steps_of
from test_actor_critic_enumeration import Tree
from test_minillm_enumeration import every_text
from torch import Tensor

from tdistill.objectives import bind

INF = float("inf")
CASES: list[tuple[str, dict[str, Any]]] = [("csil", {}), *(("q_lambda", {"lambda_": x}) for x in (0.0, 0.6, 1.0))]


def candidates(tree: Tree, node: int) -> list[int]:
    return oracles.top_p_set(tree.teacher[node].tolist(), tree.p)


def projections(tree: Tree, node: int) -> tuple[Tensor, Tensor]:
    """log proj_p π and log proj_p π* over the candidates of a node."""
    inside = candidates(tree, node)
    return tree.logits[node, inside].log_softmax(-1), tree.teacher[node, inside].log_softmax(-1)


def values(tree: Tree, gamma: float, writer: str) -> Tensor:
    """v(s) = E_a[log proj_p π*(a) − log proj_p π(a) + γ v(s·a)], a of the student or of the teacher; 0 after the end. Deepest states first."""
    v: list[Tensor] = [torch.zeros((), dtype=torch.float64)] * len(tree.nodes)
    for i in reversed(range(len(tree.nodes))):
        student, teacher = projections(tree, i)
        children = [(*tree.nodes[i], a) for a in candidates(tree, i)]
        after = torch.stack([v[tree.nodes.index(child)] if child in tree.nodes else torch.zeros_like(v[0]) for child in children])
        v[i] = ((student if writer == "student" else teacher).exp() * (teacher - student + gamma * after)).sum()
    return torch.stack(v)


def expected_gradients(tree: Tree, name: str, **knobs: Any) -> tuple[Tensor, Tensor]:
    """The mean of the loss's gradients for logits and values over every text, each as likely as the teacher writes it."""
    made, likelihood = every_text(tree, tree.teacher)
    assert likelihood.sum().item() == pytest.approx(1.0, abs=1e-12)
    loss_t = bind(name, **knobs)(steps_of(made)).loss_t
    return torch.autograd.grad(torch.where(made.mask, likelihood.unsqueeze(-1) * loss_t, 0.0).sum(), (tree.logits, tree.value))


def reach(tree: Tree, node: int) -> float:
    """How likely the teacher comes to a state."""
    text = tree.nodes[node]
    return sum((tree.teacher[i, a] for i, a in zip(tree.path(text), text, strict=True)), torch.zeros(())).exp().item()


@pytest.mark.parametrize("p", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_on_the_teachers_text_the_weighed_values_are_those_of_the_students_policy(
    name: str, knobs: dict[str, Any], gamma: float, p: float
) -> None:
    """V(s) = −KL(π‖π*)(s) + γ E_π V(s') is where the weighed loss has nothing to learn, and where the unweighed loss has."""
    tree = Tree(seed=1, p=p)
    tree.value.data.copy_(values(tree, gamma, "student").detach())
    assert (tree.value.detach() < 1e-12).all()
    assert tree.value.detach()[0] < -0.01
    weighed, unweighed = (expected_gradients(tree, name, gamma=gamma, rho_max=rho_max, **knobs)[1] for rho_max in (INF, None))
    assert weighed.abs().max() < 1e-12
    assert unweighed.abs().max() > 1e-3


@pytest.mark.parametrize("p", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_unweighed_a_state_in_which_the_student_fails_looks_valuable(name: str, knobs: dict[str, Any], gamma: float, p: float) -> None:
    """v(s) = +KL(π*‖π)(s) + γ E_π* v(s') is where the unweighed loss has nothing to learn."""
    tree = Tree(seed=1, p=p)
    tree.value.data.copy_(values(tree, gamma, "teacher").detach())
    assert (tree.value.detach() > -1e-12).all()
    assert tree.value.detach()[0] > 0.01
    weighed, unweighed = (expected_gradients(tree, name, gamma=gamma, rho_max=rho_max, **knobs)[1] for rho_max in (INF, None))
    assert unweighed.abs().max() < 1e-12
    assert weighed.abs().max() > 1e-3


@pytest.mark.parametrize("p", [0.6, 1.0])
@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize(("name", "knobs"), CASES)
def test_weighed_the_policy_follows_the_gradient_of_the_sequence_level_reverse_kl_in_each_state(
    name: str, knobs: dict[str, Any], gamma: float, p: float
) -> None:
    """That of Σ_k γ^k KL(π‖π*) from the state on, times how likely the teacher comes to the state and the student's mass on A_p there."""
    tree = Tree(seed=1, p=p)
    to_come = -values(tree, gamma, "student")
    tree.value.data.copy_(-to_come.detach())
    got = expected_gradients(tree, name, gamma=gamma, rho_max=INF, **knobs)[0]
    for i in range(len(tree.nodes)):
        (whole,) = torch.autograd.grad(to_come[i], tree.logits, retain_graph=True)
        mass = tree.logits[i].detach().softmax(-1)[candidates(tree, i)].sum().item()
        torch.testing.assert_close(got[i], reach(tree, i) * mass * whole[i], atol=1e-12, rtol=0)
    assert got.abs().max() > 1e-3
    if p == 1.0:
        torch.testing.assert_close(to_come[0], tree.objective("dense", gamma), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "knobs"), CASES)
@pytest.mark.parametrize(("rho_max", "preferred"), [(INF, 1), (None, 2)])
def test_weighed_the_student_takes_the_way_that_it_can_finish_and_unweighed_the_other(
    name: str, knobs: dict[str, Any], rho_max: float | None, preferred: int
) -> None:
    """The teacher takes token 1 as often as token 2. After 1 the student is the teacher's equal, after 2 it is not."""
    tree = Tree(seed=3, p=1.0)
    tree.teacher[0] = torch.tensor([0.0, 2.0, 2.0], dtype=torch.float64).log_softmax(-1)
    hard = tree.nodes.index((2,))
    equal = [i for i in range(len(tree.nodes)) if i != hard]
    tree.logits.data[equal] = tree.teacher[equal]
    tree.value.data.copy_(values(tree, 0.9, "teacher" if rho_max is None else "student").detach())
    step = -expected_gradients(tree, name, gamma=0.9, rho_max=rho_max, **knobs)[0][0]
    assert step[1:].argmax().item() + 1 == preferred
    assert (step[1] - step[2]).abs() > 1e-3
