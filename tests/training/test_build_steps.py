"""From a real cache to ``Steps``: every field equals plain loops over the teacher's and the student's own logits, response by response.

The reference reads whole responses without padding in float64, and uses nothing of the data set, the collator, the head or the batch.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import oracles
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from tdistill.cache.read import open_cache
from tdistill.data.collate import DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.mdp.steps import Steps
from tdistill.models.find import find_model
from tdistill.models.head.blocks import Block
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.student import StudentModel
from tdistill.models.tokenizer import load_tokenizer
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import CandidateRule, RolloutConfig
from tdistill.runtime.errors import CacheError
from tdistill.teachers.rollouts import RolloutWriter, Teacher, cache_settings, roll_out
from tdistill.teachers.transformers import generate_batch, score_batch
from tdistill.training.batch import OnlineTeacher, build_steps, student_inputs
from tdistill.training.target import TargetNetwork

VOCAB, P = 257, 0.9
FLOAT16 = 2.0**-10  # relative spacing: a candidate's log-prob is off by half of it, and by as much again when the mass is restored
FORWARD = 2e-4  # nats: the float32 forward of these models against float64
NEEDS = frozenset({"log_z", "max", "taken", "entropy", "value", "action_value", "behaviour", "expert", "uniform"})


@dataclass(frozen=True)
class Reference:
    """A response read in float64 without padding: rows over the vocabulary, [T, V] and [T]."""

    tokens: list[int]
    finished: bool
    teacher: Tensor
    student: Tensor
    value: Tensor
    action_value: Tensor
    behaviour: list[float]


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Any:
    return load_model(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def student(teacher: Any) -> StudentModel:
    made = StudentModel.for_needs(prune_layers(teacher, [0, 3]).eval(), NEEDS)
    g = torch.Generator().manual_seed(0)
    for parameter in made.value_head.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=g))
    return made


@pytest.fixture(scope="module")
def cache(tiny_teacher: Path, teacher: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text sampled at a temperature of 1.3 and scored at 1, as a student's would be: so tokens off A_p are many."""
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    conversations = [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}" + "?" * (i % 5)},)) for i in range(10)]
    prompts, _ = tokenize_prompts(conversations, tokenizer, 128, "refuse")
    drawn = {"temperature": 1.3, "top_p": 1.0, "max_completion_length": 8, "seed": 1}
    rollout, eos = RolloutConfig(teacher_top_p=P, **drawn, batch_size=5, shard_batches=1), list(range(16, VOCAB, 20))
    directory = tmp_path_factory.mktemp("rollouts")

    def answer(batch: Any) -> Any:
        written = generate_batch(teacher, batch, rollout, Vocabulary(VOCAB, eos))
        pairs = [(prompt, row.response_ids) for (prompt, _), row in zip(batch, written, strict=True)]
        scored = score_batch(teacher, pairs, Vocabulary(VOCAB, eos), rollout)
        return [replace(seen, behaviour_logp=own.behaviour_logp) for own, seen in zip(written, scored, strict=True)]

    settings = cache_settings(rollout, {"teacher": "tiny"}, eos, prompts) | {"origin": "student"}
    RolloutWriter(directory, settings, rollout, tokenizer, "writer").write([(p, 0) for p in prompts], answer)
    return directory


@pytest.fixture(scope="module")
def references(cache: Path, teacher: Any, student: StudentModel) -> list[Reference]:
    """In the cache's order, of the cache's own columns."""
    _, table = open_cache(cache)
    found = [reference(row, teacher, student) for row in table.to_pylist()]
    assert {r.finished for r in found} == {True, False}
    assert len({len(r.tokens) for r in found}) > 1
    return found


def reference(row: dict[str, Any], teacher: Any, student: StudentModel) -> Reference:
    prompt, tokens = row["prompt_ids"], row["response_ids"]
    ids, head = torch.tensor([prompt + tokens[:-1]]), student.value_head
    with torch.no_grad():
        teacher, lm = (m.double()(ids, output_hidden_states=True) for m in (teacher, student.lm))
        rows, hidden = lm.logits[0, len(prompt) - 1 :, :VOCAB], lm.hidden_states[-1][0, len(prompt) - 1 :]
        state = [float((head.state.weight[0].double() * h).sum() + head.state.bias[0].double()) for h in hidden]
        embeddings = student.lm.get_output_embeddings().weight[:VOCAB].double()
        action = [[v + float((head.action.weight.double() @ h) @ e) / len(h) for e in embeddings] for v, h in zip(state, hidden, strict=True)]
    return Reference(
        tokens=tokens,
        finished=row["finished"],
        teacher=teacher.logits[0, len(prompt) - 1 :, :VOCAB].log_softmax(-1),
        student=rows,
        value=torch.tensor(state),
        action_value=torch.tensor(action),
        behaviour=row["behaviour_logp"],
    )


@pytest.fixture(autouse=True)
def in_float32(teacher: Any, student: StudentModel) -> None:
    teacher.float()
    student.float()


def kept(row: Tensor, p: float, rule: CandidateRule | None) -> list[int]:
    """A_p by its definition, cut by ``top_k`` or ``min_p``."""
    inside = oracles.top_p_set(row.tolist(), P)
    if p < P:
        inside = oracles.top_p_set(row.tolist(), p)
    if rule is not None and rule.name == "top_k":
        inside = inside[: int(rule.value)]
    if rule is not None and rule.name == "min_p":
        inside = [a for a in inside if row[a] >= row[inside[0]] + math.log(rule.value)]
    return inside


def built(
    cache: Path, student: StudentModel, rows: list[int], p: float | None, rule: CandidateRule | None = None, teacher: Any = None
) -> tuple[dict[str, Tensor], Steps]:
    """The library's own way from a cache to ``Steps``."""
    data = RolloutDataset(cache, p, ("student",), rule=rule)
    batch = DistillCollator()([data[i] for i in rows])
    needs = NEEDS | ({"dense"} if teacher is not None else set())
    logp = None
    if teacher is not None:
        read = OnlineTeacher(teacher, VOCAB).read(batch["input_ids"], batch["attention_mask"], batch["taken_ids"].shape[1])
        logp = read(Block())
    with torch.no_grad():
        out = student(**student_inputs(batch), needs=needs, vocab_size=VOCAB)
    return batch, build_steps(batch, out, VOCAB, logp, needs)


def assert_fields(steps: Steps, references: list[Reference], sets: list[list[list[int]]], exact: bool) -> None:
    """Every field of every step; ``exact``: the teacher's log-probs did not pass through float16."""
    for b, (truth, inside) in enumerate(zip(references, sets, strict=True)):
        length = len(truth.tokens)
        assert steps.mask_t[b].tolist() == [t < length for t in range(steps.mask_t.shape[1])]
        assert steps.terminal_t[b].nonzero().flatten().tolist() == ([length - 1] if truth.finished else [])
        assert not steps.legal_t[b, length:].any()
        assert steps.a_t[b, length:].eq(-1).all()
        assert steps.behaviour_logp_t[b, length:].isnan().all()
        for t, token in enumerate(truth.tokens):
            assert_step(steps, b, t, truth, inside[t], token, exact)


def assert_step(steps: Steps, b: int, t: int, truth: Reference, inside: list[int], token: int, exact: bool) -> None:
    student, teacher, n = truth.student[t], truth.teacher[t], len(inside)
    assert steps.legal_t[b, t].tolist() == [k < n for k in range(steps.legal_t.shape[-1])]
    assert steps.a_t[b, t] == (inside.index(token) if token in inside else -1)
    for k, a in enumerate(inside):
        assert steps.q_t[b, t, k].item() == pytest.approx(student[a].item(), abs=FORWARD)
        rounding = 0.0 if exact else FLOAT16 * abs(teacher[a].item()) + FLOAT16 * abs(teacher[inside[-1]].item())
        assert steps.teacher_logp_t[b, t, k].item() == pytest.approx(teacher[a].item(), abs=FORWARD + rounding)
        if steps.action_value_t is not None:
            assert steps.action_value_t[b, t, k].item() == pytest.approx(truth.action_value[t, a].item(), abs=FORWARD)
    assert steps.teacher_logp_t[b, t, n:].eq(-torch.inf).all()
    z = math.log(sum(math.exp(x) for x in student.tolist()))
    scalars = {
        "log_z_t": z,
        "max_t": max(student.tolist()),
        "entropy_t": sum(math.exp(x - z) * (z - x) for x in student.tolist()),
        "taken_logit_t": student[token].item(),
        "teacher_taken_logp_t": teacher[token].item(),
        "behaviour_logp_t": truth.behaviour[t],
        "value_t": truth.value[t].item(),
    }
    for name, want in scalars.items():
        assert getattr(steps, name)[b, t].item() == pytest.approx(want, abs=FORWARD), name
    assert steps.expert_t[b, t].item() is False
    assert steps.vocab_size == VOCAB


def everything(references: list[Reference]) -> list[list[list[int]]]:
    return [[list(range(VOCAB)) for _ in r.tokens] for r in references]


ROWS = [0, 3, 4, 7, 9]
RULES = [None, CandidateRule(name="top_k", value=3), CandidateRule(name="min_p", value=0.2)]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r and r.name)
@pytest.mark.parametrize("p", [P, 0.5], ids=["the cache's p", "a smaller p"])
def test_every_field_is_that_of_plain_loops(p: float, rule: Any, cache: Path, student: StudentModel, references: list[Reference]) -> None:
    _, steps = built(cache, student, ROWS, p, rule)
    chosen = [references[i] for i in ROWS]
    sets = [[kept(row, p, rule) for row in r.teacher] for r in chosen]
    assert_fields(steps, chosen, sets, exact=False)
    off = [token not in inside for r, s in zip(chosen, sets, strict=True) for token, inside in zip(r.tokens, s, strict=True)]
    assert 0 < sum(off) < len(off), "tokens on and off the candidate set"
    assert steps.dense is None
    assert steps.target is None
    assert_uniform(steps.uniform, chosen, sets)
    every = [f.name for f in fields(Steps)]
    filled = {name for name in every if getattr(steps, name) is not None}
    assert filled == set(every) - {"dense", "target"}, "a new field of Steps must be compared here"


def assert_uniform(uniform: Steps | None, chosen: list[Reference], sets: list[list[list[int]]]) -> None:
    """The student's whole rows; the teacher's on A_p, and outside equal shares of the mass that is left."""
    assert uniform is not None
    assert uniform.action_value_t is None, "which is of the candidates"
    for b, (truth, inside_t) in enumerate(zip(chosen, sets, strict=True)):
        for t, (token, inside) in enumerate(zip(truth.tokens, inside_t, strict=True)):
            torch.testing.assert_close(uniform.q_t[b, t].double(), truth.student[t], atol=FORWARD, rtol=0)
            left = 1.0 - math.fsum(math.exp(truth.teacher[t, a]) for a in inside)
            outside = [a for a in range(VOCAB) if a not in inside]
            got = uniform.teacher_logp_t[b, t].double()
            assert got.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
            share = math.log(left / len(outside))
            torch.testing.assert_close(got[outside], torch.full((len(outside),), share, dtype=torch.float64), atol=2e-3, rtol=0)
            torch.testing.assert_close(got[inside], truth.teacher[t, inside], atol=1e-2, rtol=0)
            assert uniform.a_t[b, t] == token
            assert uniform.legal_t[b, t].all()
        assert not uniform.legal_t[b, len(truth.tokens) :].any()


def test_the_whole_vocabulary_with_the_teacher_online(cache: Path, student: StudentModel, teacher: Any, references: list[Reference]) -> None:
    """p = 1 makes every token a candidate; ``dense`` is that beside the cached candidates."""
    chosen = [references[i] for i in ROWS]
    batch, whole = built(cache, student, ROWS, 1.0, teacher=teacher)
    assert "candidate_ids" not in batch
    assert_fields(whole, chosen, everything(chosen), exact=True)
    for same in (whole.dense, whole.uniform):
        assert same is not None
        assert torch.equal(same.q_t, whole.q_t)
        assert torch.equal(same.teacher_logp_t, whole.teacher_logp_t)
    _, steps = built(cache, student, ROWS, P, teacher=teacher)
    assert_fields(steps, chosen, [[kept(row, P, None) for row in r.teacher] for r in chosen], exact=False)
    assert steps.dense is not None
    assert steps.dense.action_value_t is None
    assert_fields(steps.dense, chosen, everything(chosen), exact=True)


def test_the_target_networks_steps_are_those_of_its_own_weights(cache: Path, student: StudentModel, teacher: Any) -> None:
    data = RolloutDataset(cache, origins=("student",))
    batch = DistillCollator()([data[i] for i in ROWS])
    target = TargetNetwork(student, 0.5)
    before = {name: x.clone() for name, x in student.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05
    target.follow(student)
    averaged = build_steps(batch, target(**student_inputs(batch), needs=NEEDS, vocab_size=VOCAB), VOCAB, None, NEEDS)
    with torch.no_grad():
        student.load_state_dict({name: x + 0.025 if x.is_floating_point() else x for name, x in before.items()})
    try:
        _, table = open_cache(cache)
        rows = table.to_pylist()
        chosen = [reference(rows[i], teacher, student) for i in ROWS]
        assert_fields(averaged, chosen, [[kept(row, P, None) for row in r.teacher] for r in chosen], exact=False)
    finally:
        student.float().load_state_dict(before)


def test_human_text_is_the_experts_and_nobody_sampled_it(tiny_teacher: Path, teacher: Any, student: StudentModel, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    asked = [Prompt(f"p{i}", ({"role": "user", "content": "?"},), references=("yes" * (i + 1),)) for i in range(3)]
    prompts, _ = tokenize_prompts(asked, tokenizer, 128, "refuse")
    rollout = RolloutConfig(teacher_top_p=P, max_completion_length=9, batch_size=3)
    roll_out(Teacher(lambda: teacher, tokenizer, [256], {"teacher": "tiny"}), prompts, tmp_path, rollout, human=True)
    data = RolloutDataset(tmp_path, origins=("human",))
    batch = DistillCollator()([data[i] for i in range(3)])
    with torch.no_grad():
        steps = build_steps(batch, student(**student_inputs(batch), needs=NEEDS, vocab_size=VOCAB), VOCAB, None, NEEDS)
    assert steps.expert_t.all()
    assert steps.behaviour_logp_t.isnan().all()
    assert steps.mask_t.sum(-1).tolist() == [9, 7, 4]
    assert steps.terminal_t.any(-1).tolist() == [False, True, True], "the longest is cut off"


# --- the teacher's mass outside the candidates -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r and r.name)
@pytest.mark.parametrize("p", [P, 0.5])
def test_the_tail_is_that_of_float32_not_of_float16(p: float, rule: Any, cache: Path, references: list[Reference]) -> None:
    data = RolloutDataset(cache, p, ("student",), rule=rule)
    for i, truth in enumerate(references):
        for row, state in zip(truth.teacher, data[i]["candidates"].split(), strict=True):
            want = 1.0 - math.fsum(math.exp(row[a]) for a in kept(row, p, rule))
            got = 1.0 - math.fsum(math.exp(x) for x in state.logp.tolist())
            assert got == pytest.approx(want, abs=2e-5 if (p, rule) == (P, None) else 1e-3)


def test_a_tail_of_1e_3_and_less_is_right_to_one_percent(tiny_teacher: Path, teacher: Any, tmp_path: Path) -> None:
    """At p = .999 and .9999 the rounding of float16 is as large as the tail itself."""
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    prompts, _ = tokenize_prompts(
        [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},)) for i in range(6)], tokenizer, 128, "refuse"
    )
    for p in (0.999, 0.9999):
        directory = tmp_path / str(p)
        rollout = RolloutConfig(teacher_top_p=p, top_p=1.0, max_completion_length=12, seed=1, batch_size=6)
        roll_out(Teacher(lambda: teacher, tokenizer, [256], {"teacher": "tiny"}), prompts, directory, rollout)
        ours, old = tail_errors(RolloutDataset(directory), open_cache(directory)[1].to_pylist(), teacher)
        teacher.float()
        assert max(ours) < 0.01
        assert max(old) > 10 * max(ours), "the sum over float16 log-probs is much further off"


def tail_errors(data: RolloutDataset, rows: list[dict[str, Any]], teacher: Any) -> tuple[list[float], list[float]]:
    """Relative errors of the tail: of the examples' candidates, and of the float16 log-probs as they lie in the cache."""
    ours, old = [], []
    for i, row in enumerate(rows):
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"][:-1]])
        with torch.no_grad():
            truth = teacher.double()(ids).logits[0, len(row["prompt_ids"]) - 1 :, :VOCAB].log_softmax(-1)
        start, states = 0, data[i]["candidates"].split()
        for t, count in enumerate(row["candidate_count"]):
            here, start = slice(start, start + count), start + count
            outside = [a for a in range(VOCAB) if a not in row["candidate_ids"][here]]
            tail = math.fsum(math.exp(truth[t, a]) for a in outside)
            if tail < 1e-5:  # below, float32 itself has no two digits of it
                continue
            mass = math.fsum(math.exp(x) for x in states[t].logp.tolist())
            ours.append(abs(1.0 - mass - tail) / tail)
            old.append(abs(1.0 - math.fsum(math.exp(x) for x in row["candidate_logp"][here]) - tail) / tail)
    assert len(ours) > 20
    return ours, old


def test_a_mass_that_contradicts_its_candidates_is_refused(cache: Path) -> None:
    data = RolloutDataset(cache, origins=("student",))
    masses = data._table["kept_mass"].to_pylist()
    masses[2][1] *= 0.9
    column = data._table.schema.get_field_index("kept_mass")
    field = data._table.schema.field(column)
    data._table = data._table.set_column(column, field, pa.array(masses, field.type))
    assert data[1]
    with pytest.raises(CacheError, match="token 1 of a response"):
        data[2]
