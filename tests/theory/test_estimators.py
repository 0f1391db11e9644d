"""Bias and noise by enumeration: the enumeration against sampling and against plain loops, and the identities it should show."""

import math

import oracles_tabular as oracles
import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from tdistill.mdp.bellman import project
from tdistill.objectives import bind
from tdistill.theory.estimator_rows import CLONING, GAUGES, estimator_rows, n_checks
from tdistill.theory.estimators import EOS, Texts, gradient, grow, near_teacher, reading, text_gradients, text_loss
from tdistill.theory.optimum import fit, minimise, policy_kl

IQ = {"name": "iq_learn", "alpha": 0.1, "gauge": "max", "estimator": "sampled", "anchor": "none", "q_min": None}
LINEAR = {**IQ, "phi": "linear"}
SAMPLES = 4000


def small(seed: int = 0, last: str = "cut_off", depth: int = 3, n_trees: int = 2):
    g = Generator().manual_seed(seed)
    forest, texts = grow(g, n_trees, vocab=6, depth=depth, last=last)
    return near_teacher(g, forest), reading(forest, texts)


def test_the_texts_are_all_there_and_both_ends_occur():
    _, read = small()
    forest, texts = read.forest, read.texts
    assert_close(read.per_tree(torch.ones(len(texts.weight), dtype=torch.float64)), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)
    passing = torch.zeros_like(forest.visits).index_add(
        0, texts.state[texts.mask], texts.weight.unsqueeze(-1).expand_as(texts.state)[texts.mask]
    )
    assert_close(passing, forest.visits, atol=1e-12, rtol=0)
    ended = ((texts.token == EOS) & texts.mask).any(-1)
    assert 0.0 < read.per_tree(ended.double()).min() < read.per_tree(ended.double()).max() < 1.0
    steps = read(read.rows(near_teacher(Generator().manual_seed(1), forest)))
    assert ((steps.a_t < 0) & steps.mask_t).any()
    assert len({tuple(t) for t in torch.where(texts.mask, texts.token, -1)[texts.tree == 0].tolist()}) == int((texts.tree == 0).sum())


@pytest.mark.parametrize(("last", "ended"), [("end", 1.0), ("cut_off", None), ("any", None)])
def test_the_last_token_ends_a_text_as_asked(last, ended):
    _, read = small(last=last)
    full = read.texts.mask.all(-1)
    share = read.texts.token[full][:, -1].eq(EOS).double().mean().item()
    assert share == {"end": 1.0, "cut_off": 0.0}.get(last, share)
    assert last != "any" or 0.0 < share < 1.0


def sampled_texts(forest, texts: Texts, n: int) -> Texts:
    """``n`` texts of tree 0, token by token: nothing of the enumeration but the tables of the tree."""
    g, depth = Generator().manual_seed(3), texts.state.shape[1]
    state, alive = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool)
    states, tokens, masks = [], [], []
    for _ in range(depth):
        token = torch.multinomial(forest.written_logp[state].exp(), 1, generator=g).squeeze(-1)
        states.append(state)
        tokens.append(torch.where(alive, token, 0))
        masks.append(alive)
        following = forest.successor[state, token]
        alive = alive & (following >= 0)
        state = following.clamp(min=0)
    stacked = (torch.stack(x, -1) for x in (states, tokens, masks))
    return Texts(*stacked, torch.full((n,), 1.0 / n, dtype=torch.float64), torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("estimator", ["sampled", "expected"])
def test_the_mean_of_sampled_gradients_is_the_populations(estimator):
    student, read = small(n_trees=1)
    objective = bind({**IQ, "alpha": 1.0, "gauge": "lse", "estimator": estimator, "anchor": "nll"})
    exact = gradient(objective, read, student)
    drawn = gradient(objective, reading(read.forest, sampled_texts(read.forest, read.texts, SAMPLES)), student)
    each, index = text_gradients(objective, read, student), read.texts.state.flatten()
    square = torch.zeros_like(exact.mean).index_add(0, index, (read.texts.weight[:, None, None] * each.square()).flatten(0, 1))
    stderr = ((square - exact.mean.square()).clamp(min=0.0) / SAMPLES).sqrt()
    error = (drawn.mean - exact.mean).abs()
    often = read.forest.visits > 0.02  # so that a standard error is one
    assert (error[often] <= 5.0 * stderr[often] + 1e-12).all()
    assert 0.1 < (error.square().sum() / stderr.square().sum()).item() < 3.0  # 1 on average
    assert drawn.square.item() == pytest.approx(exact.square.item(), rel=0.1)


@pytest.mark.parametrize("last", ["cut_off", "any"])
def test_the_mean_loss_is_that_of_a_walk_over_the_tree(last):
    student, read = small(last=last, n_trees=1)
    forest, alpha, gamma = read.forest, 0.7, 0.9
    objective = bind({**IQ, "alpha": alpha, "gamma": gamma, "gauge": "lse"})
    sets = [ids[legal].tolist() for ids, legal in zip(forest.ids, forest.legal, strict=True)]
    q = [[x - oracles.lse(row) for x in row] for row in student.logits.tolist()]
    v = [oracles.lse([row[a] for a in kept]) for row, kept in zip(q, sets, strict=True)]
    written, total = forest.written_logp.exp().tolist(), 0.0
    for s, visits in enumerate(forest.visits.tolist()):
        for a in sets[s]:
            child = int(forest.successor[s, a])
            if a == EOS or child >= 0:  # else a cut-off, which doesn't count
                later = 0.0 if a == EOS else gamma * v[child]
                r = q[s][a] - later
                total += visits * written[s][a] * (-(r - r * r / (4.0 * alpha)) + v[s] - later)
    assert read.per_tree(text_loss(objective, read(read.rows(student)))).item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("estimator", ["sampled", "expected"])
@pytest.mark.parametrize("gauge", GAUGES)
def test_linear_phi_is_cloning_in_every_gauge_and_with_either_estimator(gauge, estimator):
    student, read = small()
    cloning = gradient(bind(CLONING), read, student).mean
    found = gradient(bind({**LINEAR, "gauge": gauge, "estimator": estimator}), read, student).mean
    assert_close(found, cloning, atol=1e-12, rtol=0)
    large = gradient(bind({**IQ, "alpha": 1e6, "gauge": gauge, "estimator": estimator}), read, student).mean
    assert_close(large, cloning, atol=1e-4, rtol=0)
    assert (large - cloning).abs().max() > 1e-12


@pytest.mark.parametrize("gauge", GAUGES)
def test_expected_is_less_noisy_and_biased_by_the_successor_alone(gauge):
    student, read = small()

    def both(**arguments):
        return [gradient(bind({**IQ, "gauge": gauge, "estimator": name, **arguments}), read, student) for name in ("sampled", "expected")]

    for arguments in ({"phi": "linear"}, {"alpha": 10.0}, {"alpha": 100.0}):
        sampled, expected = both(**arguments)
        assert (expected.noise < sampled.noise).all(), arguments
    sampled, expected = both(alpha=1.0)
    assert (sampled.bias(expected) > 0.01).all()
    texts = sampled.break_even(expected)
    assert_close(sampled.variance / texts, expected.variance / texts + sampled.gap(expected))  # mean squared errors of that many texts
    sampled, expected = both(alpha=1.0, gamma=0.0)
    assert sampled.bias(expected).max() < 1e-12
    assert sampled.bias(sampled).max() == 0.0
    assert_close(sampled.cosine(sampled), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_the_optimum_of_one_choice_is_where_bisection_says(alpha):
    student, read = small(depth=2, n_trees=3)
    forest = read.forest
    found = minimise(bind({**IQ, "alpha": alpha, "gamma": 0.0, "gauge": "none"}), read, student, 300)
    assert found.found == "minimum"
    for root in range(3):
        ids, legal = forest.ids[root], forest.legal[root]
        expert = project(forest.teacher_logp[root][ids], legal)[legal].exp().tolist()
        policy = project(found.student.logits[root][ids], legal)[legal].exp().tolist()
        assert policy == pytest.approx(oracles.bandit_minimiser(expert, alpha), abs=1e-5)


def test_the_bias_of_the_optimum_falls_as_alpha_grows_and_none_and_learned_share_it():
    student, read = small()

    def kl(**arguments):
        return policy_kl(read.forest, minimise(bind({**IQ, **arguments}), read, student, 300).student.logits)

    by_alpha = [kl(alpha=alpha, gauge="mean_support", estimator="expected").mean().item() for alpha in (0.1, 1.0, 10.0, 100.0, math.inf)]
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_alpha[-1] < 1e-9
    assert_close(kl(alpha=1.0, gauge="none"), kl(alpha=1.0, gauge="learned"), rtol=1e-3, atol=1e-7)


def test_a_cut_off_leaves_path_consistency_undetermined_and_csil_bootstrapped_from_an_untrained_value():
    student, read = small()
    assert policy_kl(read.forest, fit(bind("csil", target_network=True), read, student, 300).student.logits).max() < 1e-9
    path = minimise(bind("path_consistency"), read, student, 300)
    assert read.per_tree(text_loss(bind("path_consistency"), read(read.rows(path.student)))).max() < 1e-9  # no error is left …
    assert policy_kl(read.forest, path.student.logits).max() > 1e-3  # … yet it is not the teacher
    assert policy_kl(read.forest, fit(bind("csil", gauge="none", target_network=True), read, student, 300).student.logits).max() > 1e-3
    student, read = small(last="end")
    for gauge in ("learned", "none"):
        path = minimise(bind("path_consistency", gauge=gauge), read, student, 300)
        assert policy_kl(read.forest, path.student.logits).max() < 1e-6


def test_the_rows_cover_every_knob():
    parts = list(estimator_rows(seed=0, n_trees=1, most_steps=1))
    assert len(parts) == n_checks()
    knobs = [row for part in parts for row in part if row["group"] in ("gauge", "terminal", "anchor")]
    assert {row["gauge"] for row in knobs} == set(GAUGES)
    assert {row["alpha"] for row in knobs} == {0.1, 1.0, 10.0, 100.0}
    assert {row["gamma"] for row in knobs} == {0.0, 0.99}
    assert {row.get("anchor", "none") for row in knobs} == {"none", "tail", "nll"}
    assert all(row["bias"] == 0.0 for row in knobs if row["estimator"] == "sampled")
    assert all(row["bias"] < 1e-12 for row in knobs if row["gamma"] == 0.0)


def test_what_ends_at_the_last_token_is_cloned_from_itself_alone():
    student, read = small(last="any", n_trees=4)
    forest = read.forest
    last = (forest.length == 2) & (forest.legal & (forest.ids == EOS)).any(-1)
    assert last.any()

    def end(estimator):
        logits = minimise(bind({**LINEAR, "gauge": "none", "estimator": estimator}), read, student, 300).student.logits
        return project(logits.gather(-1, forest.ids), forest.legal).masked_fill(forest.ids != EOS, -torch.inf).exp().sum(-1)[last]

    teacher = project(forest.teacher_logp.gather(-1, forest.ids), forest.legal).masked_fill(forest.ids != EOS, -torch.inf).exp().sum(-1)[last]
    assert (end("sampled") > 0.99).all()
    assert teacher.min() < 0.9
    assert_close(end("expected"), teacher, atol=1e-4, rtol=0)
