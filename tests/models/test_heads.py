"""Every objective under every head that may serve it equals the full head: loss, metrics, and the gradient of every parameter."""

from dataclasses import replace
from typing import Any

import head_worlds as worlds
import pytest
import torch
from head_worlds import VOCAB, Result, batch, language_model, run

from tdistill.models.head import blocks
from tdistill.models.head.contract import check_head
from tdistill.models.head.run import HeadCall
from tdistill.models.student import StudentModel
from tdistill.objectives import OBJECTIVES, BoundObjective, bind
from tdistill.recipe.schema import HeadConfig
from tdistill.runtime.errors import ConfigError
from tdistill.training.batch import student_inputs
from tdistill.training.metrics import DIAGNOSTICS

EVERYTHING = HeadConfig(name="sampled", samples=VOCAB)  # with every token drawn the sum is exact
SUPPORTS = ("tail", "proj", "uniform", "dense")
TERMS: dict[str, Any] = {name: name for name in OBJECTIVES}
TERMS |= {
    f"{name}, {support}": {"name": name, "support": support}
    for name in ("forward_kl", "reverse_kl", "jsd", "skew_kl", "tvd", "actor_critic", "mean_actor_critic", "minillm")
    for support in SUPPORTS[1:]
}
TERMS |= {
    **{f"iq_learn, {gauge}": {"name": "iq_learn", "gauge": gauge} for gauge in ("max", "max_support", "mean_support", "learned")},
    "iq_learn alone": {"name": "iq_learn", "anchor": "none", "gauge": "max_support"},
    "csil held": {"name": "csil", "anchor": "tail"},
    "a sum": [{"name": "csil", "weight": 0.5}, {"name": "reverse_kl", "support": "uniform"}, {"name": "nll", "weight": 2.0}],
    "csil on a target": {"name": "csil", "target_network": True, "anchor": "nll"},
}
BOUND = {name: bind(term) for name, term in TERMS.items()}


def serves(head: HeadConfig, objective: BoundObjective) -> bool:
    try:
        check_head(head, objective.needs, objective.name)
    except ConfigError:
        return False
    return True


HEADS = {"chunked": HeadConfig(name="chunked"), "candidates": HeadConfig(name="candidates"), "all sampled": EVERYTHING}
CASES = [(objective, head) for objective, bound in BOUND.items() for head, config in HEADS.items() if serves(config, bound)]


@pytest.fixture(params=["one block", "many blocks", "longer than a block"])
def size(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Blocks of all steps, of a few steps, and responses that are longer than the largest block."""
    if request.param != "one block":
        monkeypatch.setattr(blocks, "BLOCK_BYTES", {"cpu": 4 * 4 * VOCAB})
    if request.param == "longer than a block":
        monkeypatch.setattr(blocks, "LARGEST_BLOCK_BYTES", {"cpu": 4 * 4 * VOCAB})
    return request.param


def student_for(objective: BoundObjective, architecture: str = "llama", **options: Any) -> StudentModel:
    student = StudentModel.for_needs(language_model(architecture, **options), objective.needs)
    if student.value_head is not None:
        g = torch.Generator().manual_seed(3)
        for parameter in student.value_head.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g, dtype=parameter.dtype) * 0.1
    return student.to(next(student.lm.parameters()).dtype)


def options_of(objective: BoundObjective, given: dict[str, torch.Tensor], student: StudentModel) -> dict[str, Any]:
    """The online teacher and the target network, where an objective reads them."""
    dtype = next(student.lm.parameters()).dtype
    out: dict[str, Any] = {"teacher": language_model(seed=7, dtype=dtype)} if "dense" in objective.needs else {}
    if "target" in objective.needs:
        student.use_head(HeadConfig(name="full"))
        with torch.no_grad():
            fields = student(**student_inputs(given), vocab_size=VOCAB, needs=objective.needs)
        out["target"] = {name: x + 0.1 for name, x in fields.items()}
    return out


def assert_same(found: Result, truth: Result, tolerance: float, given: dict[str, torch.Tensor]) -> None:
    assert found.distance(truth) < tolerance
    assert found.gradients.keys() == truth.gradients.keys()
    assert found.metrics.keys() == truth.metrics.keys()
    exists = given["labels"] >= 0
    for name, want in truth.metrics.items():
        torch.testing.assert_close(found.metrics[name][exists], want[exists], atol=tolerance, rtol=tolerance, equal_nan=True, msg=name)


@pytest.mark.parametrize(("name", "head"), CASES)
def test_a_head_is_the_full_one(name: str, head: str, size: str) -> None:
    objective, given = BOUND[name], batch()
    student = student_for(objective)
    options = options_of(objective, given, student) | {"watched": DIAGNOSTICS}
    truth = run(student, given, objective, "full", **options)
    assert any(g.abs().sum() > 0 for g in truth.gradients.values())
    assert_same(run(student, given, objective, HEADS[head], **options), truth, 1e-9, given)


@pytest.mark.parametrize("architecture", ["gemma2", "cohere", "granite", "gptj", "phi", "qwen2"])
@pytest.mark.parametrize("name", ["reverse_kl", "iq_learn", "iq_learn, max", "reverse_kl, dense", "csil", "mean_actor_critic"])
def test_a_cap_a_scale_a_bias_and_tied_weights(architecture: str, name: str, size: str) -> None:
    objective, given = BOUND[name], batch(seed=1)
    student = student_for(objective, architecture, scale=40.0 if architecture == "gemma2" else 1.0)
    options = options_of(objective, given, student)
    truth = run(student, given, objective, "full", **options)
    for head, config in HEADS.items():
        if serves(config, objective):
            assert run(student, given, objective, config, **options).distance(truth) < 1e-9, head


SHAPES = {
    "one token": batch((1,), 1),
    "one candidate": batch((4, 2, 6), 1),
    "one response": batch((9,), 20),
    "many candidates": batch((3, 4), 200),
    "no step": {**batch((3, 2)), "labels": torch.full((2, 3), -100)},
}


@pytest.mark.parametrize("name", ["reverse_kl", "iq_learn", "csil", "actor_critic", "reverse_kl, uniform", "mean_actor_critic", "nll"])
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes(shape: str, name: str, size: str) -> None:
    objective, given = BOUND[name], SHAPES[shape]
    student = student_for(objective)
    if shape == "no step":
        for head, config in HEADS.items():
            if serves(config, objective):
                found = run(student, given, objective, config)
                assert not any(g.ne(0).any() for g in found.gradients.values()), head
        return
    truth = run(student, given, objective, "full")
    for head, config in HEADS.items():
        if serves(config, objective):
            assert run(student, given, objective, config).distance(truth) < 1e-9, head


@pytest.mark.parametrize("name", ["reverse_kl", "iq_learn", "iq_learn, max", "nll", "csil", "reverse_kl, uniform"])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_extreme_logits(name: str, scale: float, size: str) -> None:
    objective, given = BOUND[name], batch(seed=2)
    student = student_for(objective, scale=scale)
    truth = run(student, given, objective, "full")
    for head, config in HEADS.items():
        if serves(config, objective):
            assert run(student, given, objective, config).distance(truth) < 1e-9, head


def test_equal_largest_logits_share_the_gradient_as_amax_does() -> None:
    objective, given = BOUND["iq_learn, max"], batch()
    student = student_for(objective)
    with torch.no_grad():
        student.lm.get_output_embeddings().weight.zero_()
    truth = run(student, given, objective, "full")
    assert run(student, given, objective, "chunked").distance(truth) < 1e-9


@pytest.mark.parametrize("name", ["reverse_kl", "iq_learn", "csil", "nll", "actor_critic", "jsd", "reverse_kl, uniform", "tail"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_in_low_precision_the_weights_gradient_is_as_exact_as_that_of_the_full_head(name: str, dtype: torch.dtype, autocast: bool) -> None:
    """Errors against float64, summed over seeds: one draw of rounding errors may favour either by some hundredths."""
    objective, errors = BOUND[name], dict.fromkeys(("full", "chunked", "candidates", "all sampled"), 0.0)
    for seed in range(6):
        given = batch(seed=seed)
        student = student_for(objective, seed=seed, dtype=dtype if not autocast else torch.float32)
        exact = student_for(objective, seed=seed, dtype=torch.float64)
        exact.load_state_dict(student.state_dict())
        truth = run(exact, given, objective, "full")
        given32 = {k: v.float() if v.is_floating_point() else v for k, v in given.items()}
        for head, config in {"full": HeadConfig(name="full"), **HEADS}.items():
            if head == "full" or serves(config, objective):
                with torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
                    errors[head] += error_of_head(run(student, given32, objective, config), truth)
    assert all(e <= 1.1 * errors["full"] for e in errors.values()), errors


def error_of_head(found: Result, truth: Result) -> float:
    """The error of the gradient of the head's weight, as a share of its size."""
    name = "lm.lm_head.weight"
    return float((found.gradients[name].double() - truth.gradients[name]).norm() / truth.gradients[name].norm())


def test_fields_of_a_chunked_head_are_those_of_the_full_one_with_their_gradients(size: str) -> None:
    needs = frozenset({"log_z", "max", "taken", "entropy", "value", "action_value"})
    objective, given = BOUND["mean_actor_critic"], batch()
    student = student_for(replace(objective, needs=needs))
    exists = given["labels"] >= 0
    found = {}
    for head in ("full", "chunked"):
        student.use_head(HeadConfig(name=head))
        student.zero_grad()
        out = student(**student_inputs(given), vocab_size=VOCAB, needs=needs)
        counts = {name: exists if x.dim() == 2 else given["legal"] for name, x in out.items()}
        sum((i + 1) * out[name][counts[name]].sin().sum() for i, name in enumerate(sorted(out))).backward()
        fields = {name: x.detach()[exists] for name, x in out.items()}
        gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        found[head] = Result(torch.zeros(()), fields, gradients)
    for name, want in found["full"].metrics.items():
        legal = given["legal"][exists] if want.dim() == 2 else torch.ones_like(want, dtype=torch.bool)
        torch.testing.assert_close(found["chunked"].metrics[name][legal], want[legal], atol=1e-9, rtol=1e-9, msg=name)
    assert found["chunked"].gradients.keys() == found["full"].gradients.keys()
    assert found["chunked"].distance(found["full"]) < 1e-9


def test_p_1_is_served_block_by_block(size: str) -> None:
    given = {k: v for k, v in batch().items() if k not in ("candidate_ids", "logp", "legal")}
    for name in ("reverse_kl", "iq_learn", "csil", "actor_critic"):
        objective = BOUND[name]
        student = student_for(objective)
        options = {"teacher": language_model(seed=7), "watched": DIAGNOSTICS}
        truth = run(student, given, objective, "full", **options)
        assert_same(run(student, given, objective, "chunked", **options), truth, 1e-9, given)
        with pytest.raises(ConfigError, match="candidates can't serve"):
            check_head(HeadConfig(name="candidates"), objective.needs, name, every_token=True)


def test_a_frozen_head_and_a_frozen_body_get_no_gradient() -> None:
    objective, given = BOUND["reverse_kl"], batch()
    student = student_for(objective)
    for frozen in ("lm.lm_head", "lm.model"):
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        truth = run(student, given, objective, "full")
        found = run(student, given, objective, "chunked")
        assert found.gradients.keys() == truth.gradients.keys()
        assert found.distance(truth) < 1e-9


def test_a_second_backward_says_that_the_gradient_is_gone() -> None:
    objective, given = BOUND["reverse_kl"], batch()
    student = student_for(objective)
    student.use_head(HeadConfig(name="chunked"))
    steps_of = worlds.BatchSteps(given, VOCAB, objective.needs)
    call = HeadCall(worlds.objective_loss(objective, steps_of, 1), objective.scope)
    loss = student(**student_inputs(given), vocab_size=VOCAB, needs=objective.needs, call=call)["loss"]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward alone"):
        loss.backward()


@pytest.mark.parametrize("name", BOUND)
def test_the_scope_of_an_objective_is_what_its_losses_read(name: str) -> None:
    """The loss of a step does not change with the steps outside its scope: other steps, or other responses."""
    objective, given = BOUND[name], batch()
    student = student_for(objective)
    student.use_head(HeadConfig(name="full"))
    options = options_of(objective, given, student)
    teacher = options.get("teacher")
    read = None if teacher is None else worlds.OnlineTeacher(teacher, VOCAB).read(given["input_ids"], given["attention_mask"], 7)
    steps_of = worlds.BatchSteps(given, VOCAB, objective.needs, read, options.get("target"))
    with torch.no_grad():
        fields = student(**student_inputs(given), vocab_size=VOCAB, needs=objective.needs)
    whole = objective(steps_of(blocks.Block(), fields)).loss_t
    exists = given["labels"] >= 0
    cut = blocks.blocks_of_steps(exists, None, 3) if objective.scope == "step" else blocks.blocks_of_responses(exists, None, 1)
    for block in cut:
        part = objective(steps_of(block, {key: block.take(x) for key, x in fields.items()})).loss_t
        torch.testing.assert_close(part, block.take(whole), atol=1e-12, rtol=1e-12)
