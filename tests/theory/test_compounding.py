"""The compounding-error experiment: its regret against enumeration, its steps, and what must hold of its outcomes."""

import oracles_tabular as oracles
import pytest
import torch
from torch.testing import assert_close

from tdistill.theory.compounding import METHODS, candidate_table, exact_loss, new_student, outcome, sample_paths, steps_of, train_learner
from tdistill.theory.instances import make_road


@pytest.fixture(scope="module")
def road():
    return make_road([0, 1], n_road=2, n_off=3, vocab=4, n_features=2)


def test_regret_and_return_equal_those_of_every_text(road):
    logits = torch.randn(road.teacher_logp.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = outcome(road, logits, 3)
    for e in range(2):
        tables = [x[e].tolist() for x in (road.start, road.successor, logits.log_softmax(-1), road.teacher_logp)]
        assert found.regret[e].item() == pytest.approx(oracles.road_regret(*tables, horizon=3), rel=1e-10)


def test_the_teacher_has_no_regret(road):
    found = outcome(road, road.teacher_logp + 3.0, 7)
    for lost in (found.regret, found.return_lost, found.cloning_error):
        assert_close(lost, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_steps_hold_the_texts_on_their_candidates(road):
    table = candidate_table(road)
    paths = sample_paths(torch.Generator().manual_seed(1), road, road.teacher_logp, 4, 50)
    student = new_student(road)
    with torch.no_grad():
        student.weight.normal_(generator=torch.Generator().manual_seed(2))
    steps = steps_of(road, table, paths, student)
    logp = student.logits(road).log_softmax(-1)
    for b in (0, 49, 50, 99):
        e, i = divmod(b, 50)
        for t in range(4):
            s, a = paths.states[e, i, t].item(), paths.tokens[e, i, t].item()
            if t < 3:
                assert paths.states[e, i, t + 1] == road.successor[e, s, a]
            kept = oracles.top_p(road.teacher_logp[e, s].exp().tolist(), 0.9)
            assert steps.legal_t[b, t].sum() == len(kept)
            assert steps.a_t[b, t] == (kept.index(a) if a in kept else -1)
            assert_close(steps.teacher_logp_t[b, t, : len(kept)], road.teacher_logp[e, s, kept])
            assert_close(steps.taken_logit_t[b, t] - steps.log_z_t[b, t], logp[e, s, a])
            assert steps.behaviour_logp_t[b, t] == road.teacher_logp[e, s, a]
    assert steps.terminal_t.sum(-1).eq(1).all()


def test_roll_outs_follow_the_policy(road):
    paths = sample_paths(torch.Generator().manual_seed(3), road, road.teacher_logp, 1, 20_000)
    for s in range(2):
        counts = torch.bincount(paths.tokens[0][paths.states[0] == s], minlength=4).double()
        assert_close(counts / counts.sum(), road.teacher_logp[0, s].exp(), rtol=0, atol=0.02)


def test_looking_ahead_differentiates_the_regret(road):
    student = new_student(road)
    assert exact_loss(road, student, 3, look_ahead=True).item() == pytest.approx(outcome(road, student.logits(road), 3).regret.sum().item() / 3)
    gradients = []
    for ahead in (True, False):
        (gradient,) = torch.autograd.grad(exact_loss(road, student, 3, ahead), student.weight)
        gradients.append(gradient)
    assert not torch.allclose(*gradients)
    step = 1e-5 * torch.ones_like(student.weight)
    shifted = [type(student)(student.weight + sign * step, student.value_weight) for sign in (1, -1)]
    up, down = (exact_loss(road, s, 3, True).item() for s in shifted)
    assert (up - down) / 2 == pytest.approx((gradients[0] * step).sum().item(), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_improves_on_the_uniform_student(road, name):
    uniform = outcome(road, torch.zeros_like(road.teacher_logp), 3).regret
    assert (outcome(road, train_learner(road, METHODS[name], 3, 30, seed=0), 3).regret < uniform).all()


def test_seeds_do_not_see_each_other():
    both, one = make_road([0, 1]), make_road([1])
    method = METHODS["exact, looking ahead"]
    assert_close(train_learner(both, method, 4, 5, seed=0)[1], train_learner(one, method, 4, 5, seed=0)[0], rtol=1e-9, atol=1e-9)


def test_training_is_reproducible(road):
    method = METHODS["actor_critic, own text"]
    assert torch.equal(train_learner(road, method, 3, 5, seed=4), train_learner(road, method, 3, 5, seed=4))
