"""The sampled head: its draw has the stated probabilities, its partition function the right mean, and no probability above 1."""

import math

import pytest
import torch
from head_worlds import VOCAB, batch, language_model, run

from tdistill.models.head.run import HeadCall
from tdistill.models.head.sampling import draw, inclusion, proposal_of
from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.recipe.schema import HeadConfig

NONE = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("samples", [1, 7, 60, 100, 500])
def test_inclusion_probabilities_add_up_and_are_proportional_below_1(samples: int) -> None:
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(100, generator=g, dtype=torch.float64) ** 8
    weights[:10] = 0.0
    chance = inclusion(weights, samples)
    assert chance.sum().item() == pytest.approx(min(samples, 90), rel=1e-12)
    assert chance.max() <= 1.0
    assert chance[:10].eq(0).all()
    below = (chance > 0) & (chance < 1)
    ratio = chance[below] / weights[below]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-9, atol=0)


def test_every_token_is_drawn_as_often_as_it_is_said() -> None:
    weights = torch.arange(1, 41, dtype=torch.float64)
    chance, counts, rounds = inclusion(weights, 9), torch.zeros(40), 4000
    for seed in range(rounds):
        drawn = draw(weights, 9, seed, NONE)
        assert len(drawn.ids) in (8, 9, 10)
        assert len(drawn.ids.unique()) == len(drawn.ids)
        torch.testing.assert_close(drawn.log_weight.exp(), (1.0 / chance[drawn.ids]).float())
        counts[drawn.ids] += 1
    error = (counts / rounds - chance) / (chance * (1 - chance) / rounds).sqrt().clamp(min=1e-9)
    assert error.abs().max() < 4.5


def test_known_tokens_are_marked_and_the_draw_is_that_of_the_seed() -> None:
    known = (torch.tensor([0, 0, 1]), torch.tensor([3, 99, 4]))
    drawn = draw(torch.ones(100, dtype=torch.float64), 100, 5, known)
    assert [(int(s), int(drawn.ids[p])) for s, p in zip(*drawn.known, strict=True)] == [(0, 3), (0, 99), (1, 4)]
    few = [draw(torch.ones(100, dtype=torch.float64), 10, seed, NONE).ids.tolist() for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2]


@pytest.mark.parametrize("samples", [16, 64])
def test_the_mean_of_the_partition_function_over_seeds_is_the_exact_one(samples: int) -> None:
    """And the loss that is read of it never gives a candidate, or the token taken, a probability above 1."""
    student, given = StudentModel(language_model(scale=3.0)), batch()
    exists = given["labels"] >= 0
    needs, read = frozenset({"log_z", "taken"}), {}

    inputs = {k: given[k] for k in ("input_ids", "attention_mask", "taken_ids", "candidate_ids", "legal")} | {"valid": exists}
    with torch.no_grad():
        for seed in range(600):
            student.use_head(HeadConfig(name="sampled", samples=samples))
            read[seed] = student(**inputs, vocab_size=VOCAB, needs=needs, call=HeadCall(seed=seed))
        student.use_head(HeadConfig(name="full"))
        truth = student(**inputs, vocab_size=VOCAB, needs=needs)
    ratios = torch.stack([(out["log_z_t"] - truth["log_z_t"])[exists].exp() for out in read.values()])
    error = (ratios.mean(0) - 1.0) / (ratios.std(0) / math.sqrt(len(ratios))).clamp(min=1e-12)
    assert error.abs().max() < 4.5
    for out in read.values():
        inside = torch.where(given["legal"], out["q_t"], -torch.inf).logsumexp(-1)
        assert (inside <= out["log_z_t"] + 1e-9)[exists].all()
        assert (out["taken_logit_t"] <= out["log_z_t"] + 1e-9)[exists].all()
    assert ratios.std() > 1e-3, "it is an estimate"


def test_more_samples_give_a_gradient_nearer_to_the_exact_one() -> None:
    objective, given = bind("reverse_kl"), batch()
    student = StudentModel(language_model(scale=2.0))
    truth = run(student, given, objective, "full")
    errors = []
    for samples in (8, 64, VOCAB):
        found = [run(student, given, objective, HeadConfig(name="sampled", samples=samples), seed=seed) for seed in range(12)]
        errors.append(sum(x.distance(truth) for x in found) / len(found))
    assert errors[0] > 1.5 * errors[1]
    assert errors[2] < 1e-9


def test_half_of_the_draw_goes_to_the_candidates_of_the_batch() -> None:
    proposal = proposal_of(torch.tensor([4, 4, 4, 7]), 10)
    assert proposal.sum().item() == pytest.approx(1.0)
    assert proposal[4].item() == pytest.approx(0.5 * 0.75 + 0.05)
    assert proposal[0].item() == pytest.approx(0.05)
