"""Inputs of the head's benches: real candidates for any vocabulary, and ways to compute their logits that agree."""

import sys
from pathlib import Path

import pytest
import torch

from tdistill.runtime.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("candidate_rows", "head_inputs", "told")


@pytest.fixture(scope="module")
def scripts():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(BENCHMARKS)
    import candidate_rows
    import head_inputs

    yield head_inputs, candidate_rows
    patch.undo()
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("vocab", [500, 49152, 151665])
def test_every_state_has_its_candidates_once_and_below_the_vocabulary(scripts, vocab):
    inputs, _ = scripts
    batch = inputs.batch_of(inputs.Size(128, vocab))
    assert batch["taken_ids"].shape == (2, 64)
    for ids, legal, logp in zip(*(batch[name].flatten(0, 1) for name in ("candidate_ids", "legal", "logp")), strict=True):
        own = ids[legal].tolist()
        assert len(set(own)) == len(own) > 0
        assert max(own) < vocab
        assert legal[: len(own)].all()
        assert (logp[legal].diff() <= 0).all()


def test_a_larger_vocabulary_does_not_change_how_many_candidates_there_are(scripts):
    inputs, _ = scripts
    small, large = (inputs.batch_of(inputs.Size(128, vocab)) for vocab in (49152, 262144))
    assert torch.equal(small["legal"], large["legal"])
    assert len(small["candidate_ids"].unique()) == len(large["candidate_ids"].unique())


def test_tokens_that_are_no_whole_answers_are_refused(scripts):
    inputs, _ = scripts
    with pytest.raises(ConfigError, match="multiple of 64"):
        inputs.batch_of(inputs.Size(100, 500))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_all_ways_to_compute_candidates_agree(scripts, dtype):
    inputs, rows = scripts
    row = rows.measure(inputs.Size(128, 2000, 16, dtype, 0.8), 1)  # it raises where a way is off
    assert row["union"] <= row["pairs"]
    assert set(row["seconds"]) == set(rows.WAYS) - ({"sparse"} if dtype == "bfloat16" else set())


def test_a_way_that_is_wrong_is_found(scripts, monkeypatch):
    inputs, rows = scripts

    def wrong(pairs):
        logits, of_hidden = rows.bags(pairs)
        return logits, 2 * of_hidden

    monkeypatch.setitem(rows.WAYS, "wrong", wrong)
    with pytest.raises(AssertionError, match="is off by"):
        rows.measure(inputs.Size(64, 500, 8), 1)
