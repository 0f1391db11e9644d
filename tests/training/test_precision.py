"""float32 where it is promised: values, losses and metrics under autocast, against float64."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from torch import Tensor

from tdistill.mdp.steps import Steps
from tdistill.models.find import find_model
from tdistill.models.head.full import entropy
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.student import StudentModel
from tdistill.models.value_head import ValueHead
from tdistill.objectives import OBJECTIVES, bind
from tdistill.recipe.schema import LmConfig
from tdistill.training.batch import OnlineTeacher
from tdistill.training.language_modelling import window_loss
from tdistill.training.metrics import diagnostics
from tdistill.training.target import TargetNetwork

HALF = [torch.bfloat16, torch.float16]
NEEDS = frozenset({"value", "action_value", "log_z", "max", "taken"})
VOCAB = 257


def randomise(head: ValueHead, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))


def product(embeddings: Tensor) -> Callable[[Tensor], Tensor]:
    """What a student multiplies the value head's reading with: the rows of its output embedding."""
    return lambda read: torch.nn.functional.linear(read, embeddings.to(read.dtype))


def reference(head: ValueHead, hidden: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """v(s) and w(s,a) in float64, from the equation."""
    weight, bias, action = (x.detach().double() for x in (head.state.weight, head.state.bias, head.action.weight))
    h, e = hidden.detach().double(), embeddings.detach().double()
    v = (h * weight[0]).sum(-1) + bias
    w = torch.einsum("btd,ed,ve->btv", h, action, e)
    return v, v.unsqueeze(-1) + w / e.shape[-1]


@pytest.mark.parametrize("half", HALF)
def test_a_value_head_is_float32_under_autocast(half: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    head, hidden, embeddings = ValueHead(64, actions=True), torch.randn(2, 5, 64, generator=g), torch.randn(30, 64, generator=g)
    randomise(head)
    with torch.autocast("cpu", half):
        got = head(hidden), head.of_actions(hidden, product(embeddings))
        rounded = torch.nn.functional.linear(hidden, head.state.weight, head.state.bias).squeeze(-1)
    for mine, truth in zip(got, reference(head, hidden, embeddings), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), truth, atol=2e-5, rtol=1e-6)
    assert (rounded.double() - reference(head, hidden, embeddings)[0]).abs().max() > 1e-3, "autocast does round a plain linear layer"
    grad = torch.autograd.grad(got[0].sum(), head.state.weight)[0]
    torch.testing.assert_close(grad[0].double(), hidden.double().sum((0, 1)), atol=1e-5, rtol=1e-6)


def test_a_value_head_in_float64_stays_float64_and_one_in_bfloat16_computes_in_float32() -> None:
    hidden, embeddings = torch.randn(1, 3, 16, dtype=torch.float64), torch.randn(9, 16, dtype=torch.float64)
    head = ValueHead(16, actions=True)
    randomise(head)
    head.double()
    for mine, truth in zip((head(hidden), head.of_actions(hidden, product(embeddings))), reference(head, hidden, embeddings), strict=True):
        torch.testing.assert_close(mine, truth, atol=1e-12, rtol=1e-12)
    head.bfloat16()
    coarse, rows = hidden.bfloat16(), embeddings.bfloat16()
    for mine, truth in zip((head(coarse), head.of_actions(coarse, product(rows))), reference(head, coarse, rows), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), truth, atol=1e-5, rtol=1e-6)


@pytest.fixture
def student(tiny_teacher: Path) -> StudentModel:
    made = StudentModel.for_needs(prune_layers(load_model(find_model(str(tiny_teacher))), [0, 3]), NEEDS)
    randomise(made.value_head)
    return made


def batch() -> dict[str, Any]:
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCAB, (2, 11), generator=g)
    taken = torch.randint(VOCAB, (2, 6), generator=g)
    candidates = torch.stack([torch.stack([torch.randperm(VOCAB, generator=g)[:7] for _ in range(6)]) for _ in range(2)])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "taken_ids": taken,
        "candidate_ids": candidates,
        "needs": NEEDS | {"dense", "entropy"},
        "vocab_size": VOCAB,
    }


def hidden_and_logits(student: StudentModel, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the language model itself gives, in the precision in which it computes here."""
    result = student.lm(given["input_ids"], attention_mask=given["attention_mask"], output_hidden_states=True)
    return result.hidden_states[-1][:, -6:], result.logits[:, -6:, :VOCAB]


def assert_is_float32(out: dict[str, Tensor], student: StudentModel, hidden: Tensor, logits: Tensor, given: dict[str, Any]) -> None:
    """Every field equals float64 arithmetic on the language model's own output."""
    v, w = reference(student.value_head, hidden, student.lm.get_output_embeddings().weight)
    l64, ids = logits.detach().double(), given["candidate_ids"]
    p = l64.log_softmax(-1)
    truth = {
        "value_t": v,
        "action_value_t": w.gather(-1, ids),
        "q_t": l64.gather(-1, ids),
        "log_z_t": l64.logsumexp(-1),
        "max_t": l64.amax(-1),
        "taken_logit_t": l64.gather(-1, given["taken_ids"].unsqueeze(-1)).squeeze(-1),
        "logits_t": l64,
        "entropy_t": -(p.exp() * p).sum(-1),
    }
    assert out.keys() == truth.keys()
    for name, want in truth.items():
        assert out[name].dtype == torch.float32, name
        torch.testing.assert_close(out[name].double(), want, atol=3e-5, rtol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("half", HALF)
def test_a_student_under_autocast_gives_float32(half: torch.dtype, student: StudentModel) -> None:
    given = batch()
    with torch.autocast("cpu", half), torch.no_grad():
        hidden, logits = hidden_and_logits(student, given)
        out = student(**given)
    assert logits.dtype == half, "the language model does compute in half precision here"
    assert_is_float32(out, student, hidden, logits, given)


@pytest.mark.parametrize("half", HALF)
def test_a_target_network_under_autocast_gives_float32(half: torch.dtype, student: StudentModel) -> None:
    given, target = batch(), TargetNetwork(student, 0.5)
    with torch.autocast("cpu", half), torch.no_grad():
        hidden, logits = hidden_and_logits(target.module, given)
        out = target(**given)
    assert_is_float32(out, target.module, hidden, logits, given)


@pytest.mark.parametrize("whole", [False, True], ids=["language model", "value head too"])
def test_a_student_in_bfloat16_gives_float32(whole: bool, student: StudentModel) -> None:
    given = batch()
    (student if whole else student.lm).bfloat16()
    with torch.no_grad():
        hidden, logits = hidden_and_logits(student, given)
        out = student(**given)
    assert_is_float32(out, student, hidden, logits, given)


def test_a_student_in_float64_gives_float64(student: StudentModel) -> None:
    out = student.double()(**batch())
    assert {name: x.dtype for name, x in out.items()} == dict.fromkeys(out, torch.float64)


ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "iq_learn": [{}, {"gauge": "learned"}, {"value_term": "v0", "gauge": "max", "q_min": -5.0}],
    "path_consistency": [{}, {"max_n": 2}],
    "reverse_kl": [{"support": support} for support in ("tail", "proj", "uniform", "dense")],
    "csil": [{}, {"target_network": True, "anchor": "tail"}],
}


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize(("name", "knobs"), [(name, knobs) for name in OBJECTIVES for knobs in ARGUMENTS.get(name, [{}])])
def test_a_loss_under_autocast_is_the_loss_in_float32(name: str, knobs: dict[str, Any], half: torch.dtype) -> None:
    """Value and gradient; autocast may not touch what an objective computes, and nothing of it is below float32."""
    world = builders.make_world(seed=3, lengths=(5, 3, 1), finished=(True, False, True), vocab=7, expert=(True, True, False))
    bound = bind(name, **knobs)

    def loss(steps: Any) -> Any:
        return bound(replace(steps, target=steps) if "target" in bound.needs else steps)

    truth = builders.loss_and_grads(world, loss)
    plain = builders.loss_and_grads(world, loss, dtype=torch.float32)
    with torch.autocast("cpu", half):
        output = loss(builders.steps_of(world, dtype=torch.float32))
        under = builders.loss_and_grads(world, loss, dtype=torch.float32)
    assert all(x.dtype == torch.float32 for x in (output.loss_t, *output.metrics.values()))
    for got, same, want in zip(under, plain, truth, strict=True):
        assert torch.equal(got, same)
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("half", HALF)
def test_the_language_modelling_term_is_float32_under_autocast(half: torch.dtype, student: StudentModel, tiny_teacher: Path) -> None:
    teacher = load_model(find_model(str(tiny_teacher)))
    windows = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", half), torch.no_grad():
        parts = window_loss(student, windows, LmConfig(corpus="none", kd_ratio=0.5), OnlineTeacher(teacher, VOCAB), VOCAB)[1]
        q, p = (m(windows[:, :-1]).logits[..., :VOCAB].double().log_softmax(-1) for m in (student.lm, teacher))
    ce, kd = parts["cross_entropy"], parts["kd"]
    assert ce.dtype == kd.dtype == torch.float32
    torch.testing.assert_close(ce.double(), -q.gather(-1, windows[:, 1:, None]).squeeze(-1), atol=2e-5, rtol=2e-6)
    torch.testing.assert_close(kd.double(), (p.exp() * (p - q)).sum(-1), atol=2e-5, rtol=2e-5)


def test_a_logit_of_minus_infinity_leaves_the_metrics_finite() -> None:
    """Some models write −inf at tokens that may never come."""
    logits = torch.tensor([[[1.0, 2.0, -torch.inf, 0.0]]])
    legal, taken = torch.tensor([[[True, True, False]]]), torch.zeros(1, 1, dtype=torch.long)
    state = legal.any(-1)
    # The third slot is padding: it may hold the logit of any token.
    q, zero = logits[..., [0, 1, 1]], torch.zeros(1, 1, 3)
    steps = Steps(q, zero, legal, taken, state, state)
    out = diagnostics(steps, {"log_z_t": logits.logsumexp(-1), "entropy_t": entropy(logits)})
    p = torch.tensor([1.0, 2.0, 0.0]).softmax(-1)
    assert out["entropy"].item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-6)
    assert out["student_mass"].item() == pytest.approx(p[:2].sum().item(), rel=1e-6)
