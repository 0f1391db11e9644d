"""KL(student ‖ teacher): what the tail bucket hides, and that it seeks modes. What all divergences share: test_divergences.py."""

import builders
import oracles
import pytest
import torch
from hypothesis import given, settings

from tdistill.objectives import bind


def loss(support: str, loss_temperature: float = 1.0) -> builders.Loss:
    return bind("reverse_kl", support=support, loss_temperature=loss_temperature)


@settings(max_examples=25, deadline=None)
@given(world=builders.worlds())
def test_coarsening_loses_exactly_what_it_hides(world: builders.World) -> None:
    """Chain rule with the student's masses: dense = tail + (1−m)·KL(student ‖ teacher within the tail) ≥ tail ≥ 0."""
    dense, tail = (builders.loss_and_grads(world, loss(s))[0] for s in ("dense", "tail"))
    for b, response in enumerate(world.responses()):
        for t in range(len(response)):
            outside = [a for a in range(6) if a not in response.candidates[t]]
            teacher, student = oracles.teacher_and_student(response, t, "dense")
            rest = sum(student[a].exp().item() for a in outside)
            rows = [oracles.log_softmax([row[a] for a in outside]) for row in (student, teacher)] if outside else [[], []]
            assert dense[b, t].item() == pytest.approx(tail[b, t].item() + rest * oracles.kl(*rows).item(), abs=1e-9)
            assert dense[b, t] >= tail[b, t] - 1e-9 >= -2e-9


def test_seeks_a_mode_where_the_forward_kl_covers() -> None:
    """Two equal modes: a student on one of them pays log 2 here, far more to the forward KL than a broad student does."""
    world = builders.make_world(vocab=4, lengths=(1,), finished=(True,), p=1.0)
    world.teacher_logp[0, 0] = torch.tensor([0.49995, 0.49995, 0.00005, 0.00005], dtype=torch.float64).log()
    pointed, broad = torch.tensor([20.0, 0.0, 0.0, 0.0]), torch.zeros(4)

    def pay(logits: torch.Tensor, name: str) -> float:
        world.logits.data[0, 0] = logits.double()
        return builders.loss_and_grads(world, bind(name, support="dense"))[0].item()

    assert pay(pointed, "reverse_kl") == pytest.approx(0.6932, abs=1e-3)
    assert pay(pointed, "reverse_kl") < pay(broad, "reverse_kl")
    assert pay(pointed, "forward_kl") > pay(broad, "forward_kl")
