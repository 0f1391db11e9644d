"""A batch with and without padding: the same candidates, and bytes for the real ones only."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tdistill.data.collate import RAGGED, DistillCollator, with_padding
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.mdp.candidates import FIRST_TOPK, Ragged, nucleus_mask, rule_mask
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.recipe.schema import CandidateRule, RolloutConfig
from tdistill.teachers.rollouts import Teacher, roll_out


@pytest.fixture(scope="module")
def cache(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some states of it have more candidates than are looked at first, and some have few."""
    directory = tmp_path_factory.mktemp("wide") / "cache"
    source = find_model(str(tiny_teacher))
    teacher: Any = load_model(source)
    teacher.lm_head.weight.data *= torch.linspace(0.05, 1.0, len(teacher.lm_head.weight)).unsqueeze(-1)
    asked = [Prompt(f"p{i}", ({"role": "user", "content": "question" * (1 + i % 3)},)) for i in range(8)]
    prompts, _ = tokenize_prompts(asked, load_tokenizer(source), 128, "refuse")
    rollout = RolloutConfig(teacher_top_p=0.95, max_completion_length=9, seed=2, batch_size=4, top_p=1.0)
    roll_out(Teacher(lambda: teacher, load_tokenizer(source), [256], {"teacher": "wide"}), prompts, directory, rollout)
    return directory


def slow(found: list[Ragged], steps: int) -> dict[str, np.ndarray]:
    """Pad candidates one by one."""
    shape = (len(found), steps, max(int(r.counts.max()) for r in found))
    out = {"candidate_ids": np.zeros(shape, np.int64), "logp": np.full(shape, -np.inf, np.float32), "legal": np.zeros(shape, bool)}
    for b, ragged in enumerate(found):
        at = 0
        for t, count in enumerate(ragged.counts):
            for k in range(count):
                out["candidate_ids"][b, t, k], out["logp"][b, t, k], out["legal"][b, t, k] = ragged.ids[at], ragged.logp[at], True
                at += 1
    return out


@pytest.mark.parametrize("p", [0.95, 0.5])
def test_a_batch_has_every_candidate_in_its_slot_and_nothing_else(cache: Path, p: float) -> None:
    data = RolloutDataset(cache, p)
    examples = [data[i] for i in (3, 0, 5)]
    batch = DistillCollator()(examples)
    for name, wanted in slow([e["candidates"] for e in examples], batch["taken_ids"].shape[1]).items():
        assert batch[name].dtype == torch.from_numpy(wanted).dtype
        np.testing.assert_array_equal(batch[name].numpy(), wanted, name)


def test_a_batch_that_is_padded_later_is_the_same_batch(cache: Path) -> None:
    data = RolloutDataset(cache)
    examples = [data[i] for i in range(4)]
    padded, ragged = DistillCollator()(examples), DistillCollator(padded=False)(examples)
    assert ragged.keys() >= RAGGED
    found = with_padding(ragged)
    assert found.keys() == padded.keys()
    for name, wanted in padded.items():
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=0, equal_nan=True)
    assert with_padding(padded) is padded, "nothing is left to pad"


def test_a_batch_that_is_not_padded_holds_the_bytes_of_its_candidates_alone(cache: Path) -> None:
    data = RolloutDataset(cache)
    examples = [data[i] for i in range(len(data))]
    batch = DistillCollator(padded=False)(examples)
    candidates = sum(len(e["candidates"].ids) for e in examples)
    steps = batch["taken_ids"].numel()
    assert sum(batch[name].nbytes for name in RAGGED) == 8 * candidates + 8 * steps


def test_a_batch_without_candidates_has_none_in_either_form(cache: Path) -> None:
    data = RolloutDataset(cache, 1.0)
    batch = DistillCollator(padded=False)([data[0], data[1]])
    assert not batch.keys() & (RAGGED | {"candidate_ids", "logp", "legal"})
    assert with_padding(batch) is batch


@pytest.mark.parametrize("rule", [None, CandidateRule(name="min_p", value=0.001), CandidateRule(name="adaptive", value=0.0001)])
@pytest.mark.parametrize("p", [0.95, 0.94, 0.3])
def test_states_wider_than_what_is_looked_at_first_are_cut_as_the_others(cache: Path, p: float, rule: CandidateRule | None) -> None:
    whole, cut = RolloutDataset(cache), RolloutDataset(cache, p, rule=rule)
    widest = 0
    for i in range(len(whole)):
        for all_of_it, found in zip(whole[i]["candidates"].split(), cut[i]["candidates"].split(), strict=True):
            logp = torch.from_numpy(all_of_it.logp)
            keep = torch.ones_like(logp, dtype=torch.bool)
            if p < 0.95:
                keep &= nucleus_mask(logp, p)
            if rule is not None:
                keep &= rule_mask(rule, logp)
            kept = int(keep.sum())
            widest = max(widest, kept)
            assert found.ids.tolist() == all_of_it.ids[:kept].tolist()
            np.testing.assert_array_equal(found.logp, all_of_it.logp[:kept])
            assert found.kept_mass.item() == pytest.approx(math.fsum(math.exp(x) for x in found.logp.tolist()), abs=1e-6)
    if p > 0.9:
        assert widest > FIRST_TOPK, "the first look is not enough"


def test_the_length_of_an_example_is_that_of_prompt_and_response(cache: Path) -> None:
    data = RolloutDataset(cache)
    lengths = [len(data[i]["input_ids"]) + len(data[i]["response_ids"]) for i in range(len(data))]
    assert data.lengths() == lengths
    assert len(set(lengths)) > 1
