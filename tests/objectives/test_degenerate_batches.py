"""Every objective on batches at the edge: one token, one candidate, nothing on A_p, logits of ±1e4: finite, and bounded below."""

import itertools
from dataclasses import replace
from typing import Any

import builders
import pytest
import torch
from pairwise import pairwise

from tdistill.objectives import OBJECTIVES, bind

COSTS = ["reverse_kl", "jsd", "skew_kl"]
ANCHORS = ["none", "tail", "nll"]
SUPPORTS = ["tail", "proj", "uniform", "dense"]
PHIS = ["chi2", "hellinger", "kl", "js", "tv", "linear"]


def grid(**choices: list[Any]) -> list[dict[str, Any]]:
    return pairwise(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


KNOBS: dict[str, list[dict[str, Any]]] = {
    "nll": [{}],
    "tail": [{}],
    "forward_kl": grid(support=SUPPORTS),
    "reverse_kl": grid(support=SUPPORTS),
    "jsd": grid(support=SUPPORTS, beta=[0.0, 0.5, 1.0]),
    "skew_kl": grid(support=SUPPORTS),
    "skew_rkl": grid(support=SUPPORTS),
    "tvd": grid(support=SUPPORTS),
    "alpha_beta": grid(support=["tail", "dense"], alpha=[0.2, 1.0], beta=[0.7, 0.0]),
    "iq_learn": [
        *grid(gauge=["none", "lse", "mean_support"], phi=PHIS, value_term=["value_expert", "v0"], anchor=["none"], alpha=[0.1]),
        *grid(gauge=["max", "lse"], value_term=["value_mix"], q_min=[-10.0], anchor=["tail"]),
        *grid(gauge=["learned", "max"], value_term=["value_expert", "v0", "value_mix"], phi_on=["all"], terminal=["zero", "absorbing"]),
    ],
    "bellman_distill": [{}],
    "sqil": grid(other=["untaken", "rollouts"], gauge=["none", "learned"], terminal=["zero", "absorbing"], anchor=["tail"]),
    "ls_iq": grid(other=["untaken", "rollouts"], gauge=["none", "learned"], terminal=["zero", "absorbing"], anchor=["nll"]),
    "bd_released": [{}],
    "csil": grid(gauge=["none", "learned"], stop_target=[True, False], anchor=ANCHORS, rho_max=[None, float("inf")]),
    "q_lambda": grid(lambda_=[0.0, 0.95, 1.0], gauge=["none", "learned"], stop_target=[True, False], rho_max=[None, float("inf")]),
    "path_consistency": grid(lambda_=[0.95, 1.0], gauge=["learned", "lse"], max_n=[None, 2]),
    "actor_critic": grid(cost=COSTS, support=["tail", "dense"], rho_max=[1.0, float("inf")]),
    "mean_actor_critic": grid(cost=COSTS, support=["tail", "dense"]),
    "minillm": grid(support=["tail"], length_normalization=[True, False], clip_epsilon=[0.2, float("inf")]),
}
# A policy gradient's surrogate is no loss with a minimum: its gradient alone means something.
SURROGATES = {"actor_critic", "mean_actor_critic", "minillm"}


def off_support(made: builders.World, where: str) -> builders.World:
    """The same with the first, or every, token off A_p, where something is off it."""
    tokens = made.tokens.clone()
    for b, response in enumerate(made.responses()):
        for t, inside in enumerate(response.candidates):
            outside = [a for a in range(made.logits.shape[-1]) if a not in inside]
            if outside and (t == 0 or where == "all"):
                tokens[b, t] = outside[0]
    return replace(made, tokens=tokens)


def worlds(seed: int) -> dict[str, builders.World]:
    """Expert's and others' responses, by what is odd about them."""
    both = {"expert": (True, False), "vocab": 6}
    usual = builders.make_world(seed, lengths=(4, 3), finished=(True, False), **both)
    return {
        "one token, finished": builders.make_world(seed, lengths=(1, 1), finished=(True, True), **both),
        "one token, cut off": builders.make_world(seed, lengths=(1, 1), finished=(False, False), **both),
        "one candidate": builders.make_world(seed, lengths=(3, 2), finished=(True, False), p=0.01, **both),
        "every token a candidate": builders.make_world(seed, lengths=(3, 2), finished=(True, False), p=1.0, **both),
        "first token off": off_support(usual, "first"),
        "all tokens off": off_support(usual, "all"),
        "extreme": builders.extreme_world(seed),
        "extreme, first token off": off_support(builders.extreme_world(seed), "first"),
        "extreme, one token": builders.extreme_world(seed, lengths=(1, 1)),
    }


def test_every_objective_is_here() -> None:
    assert KNOBS.keys() == OBJECTIVES.keys()


@pytest.mark.parametrize("name", KNOBS)
def test_loss_gradient_and_metrics_are_finite(name: str) -> None:
    """In both precisions; NaN in a metric means that it is not defined there, and nothing is infinite."""
    for odd, made in worlds(1).items():
        for dtype in (torch.float32, torch.float64):
            steps, leaves = builders.steps_of(made, dtype=dtype), (made.logits, made.value)
            for knobs in KNOBS[name]:
                out = bind(name, **knobs)(steps)
                loss_t = torch.where(steps.mask_t, out.loss_t, 0.0)
                grads = torch.autograd.grad(loss_t.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
                assert all(x.isfinite().all() for x in (loss_t, *grads)), (odd, knobs, dtype)
                assert not any(x[steps.mask_t].isinf().any() for x in out.metrics.values()), (odd, knobs, dtype)


def least(name: str, knobs: dict[str, Any]) -> float:
    """The least that a response can pay."""
    if name == "iq_learn" and knobs.get("value_term") == "value_mix" and knobs.get("phi_on") != "all":
        return -4 * 13.0  # four steps, each at least q_min − log 6 below 0
    if name == "iq_learn" and knobs.get("terminal") == "absorbing":
        return -4 * (200.0 / 0.01 + 100.0)  # V(terminal) is a constant
    if name == "iq_learn" and knobs.get("phi_on") == "all":
        return -4 * 4 * 100.0  # −α a step; the weights of v0 are at most 4
    # φ at most averages to x − x²/(4α) over the vocabulary: −α, and the least V of ``bd_released`` with its clip
    return -4 * 10.2 if name == "bd_released" else -1e-3


@pytest.mark.parametrize("name", [name for name in KNOBS if name not in SURROGATES])
def test_no_response_pays_less_than_the_lower_bound(name: str) -> None:
    """Student logits and values of every size and direction; squares and divergences are ≥ 0, and so is −φ(r) + V − γV'."""
    for odd, made in worlds(1).items():
        for size in (1.0, 1e3):
            g = torch.Generator().manual_seed(2)
            logits, value = (size * torch.randn(x.shape, generator=g, dtype=torch.float64) for x in (made.logits, made.value))
            shift = size * torch.randn(made.value.shape, generator=g, dtype=torch.float64)  # of a whole state's Q
            moved = replace(made, logits=(logits + shift[..., None]).requires_grad_(), value=value.requires_grad_())
            steps = builders.steps_of(moved)
            for knobs in KNOBS[name]:
                with torch.no_grad():
                    loss_t = torch.where(steps.mask_t, bind(name, **knobs)(steps).loss_t, 0.0)
                assert loss_t.sum(-1).min() >= least(name, knobs), (odd, size, knobs)
