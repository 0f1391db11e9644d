import json
import shutil

import numpy as np
import pytest
import torch

from tdistill.cache.write import MANIFEST, open_cache, shard_name
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, template_fingerprint, tokenize_prompts
from tdistill.mdp.candidates import rule_mask, top_p_candidates
from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.forward import step_logp
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer, tokenizer_fingerprint
from tdistill.recipe.schema import CandidateRule
from tdistill.runtime.errors import CacheError, ConfigError
from tdistill.teachers.generate import Sampling, batch_plan, generate_batch
from tdistill.teachers.rollouts import Capture, roll_out
from tdistill.teachers.sampling import token_noise
from tdistill.teachers.score import score_batch

P = 0.9
SAMPLING = Sampling(top_p=P, max_completion_length=16, seed=5)
CAPTURE = Capture(teacher_top_p=P, max_candidates=None, num_generations=2, batch_size=4, shard_batches=2)


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_model(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher):
    return load_tokenizer(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = [f"question {i}" + "?" * (3 * i % 7) for i in range(12)]
    conversations = [Prompt(f"p{i}", ({"role": "user", "content": text},), references=(f"answer {i}",)) for i, text in enumerate(texts)]
    return tokenize_prompts(conversations, tokenizer, 128, "refuse")[0]


@pytest.fixture(scope="module")
def fingerprints(tiny_teacher, tokenizer):
    return {
        "teacher": weights_fingerprint(find_model(str(tiny_teacher))),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": template_fingerprint(tokenizer),
    }


@pytest.fixture(scope="module")
def make(teacher, tokenizer, prompts, fingerprints):
    """Roll out into a directory; ``load`` replaces how the teacher is loaded."""

    def _make(directory, load=lambda: teacher, human=False):
        eos = [tokenizer.eos_token_id]
        return roll_out(load, tokenizer, prompts, directory, SAMPLING, CAPTURE, fingerprints, eos, human)

    return _make


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    return directory, make(directory)


@pytest.fixture
def cache(finished, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(finished[0], tmp_path / "cache")


def generate(teacher, tokenizer, prompts, batch_size, sampling=SAMPLING, p=P):
    plan = batch_plan(prompts, 2, batch_size)
    eos = [tokenizer.eos_token_id]
    rows = [r for batch in plan for r in generate_batch(teacher, batch, sampling, eos, len(tokenizer), p)]
    return {(r.prompt.prompt.prompt_id, r.sample_index): r for r in rows}


def test_generation_and_scoring_of_the_same_text_record_the_same(teacher, tokenizer, prompts):
    rows = list(generate(teacher, tokenizer, prompts, 5).values())
    scored = score_batch(teacher, [(r.prompt, r.tokens) for r in rows], [tokenizer.eos_token_id], len(tokenizer), P)
    assert 0 < sum(r.finished for r in rows) < len(rows), "both endings must occur"
    widths = set()
    for mine, theirs in zip(rows, scored, strict=True):
        assert mine.tokens == theirs.tokens
        assert mine.finished == theirs.finished
        np.testing.assert_allclose(mine.token_logp, theirs.token_logp, atol=1e-3)
        np.testing.assert_allclose(mine.kept_mass, theirs.kept_mass, atol=1e-3)
        for t in range(len(mine.tokens)):
            np.testing.assert_array_equal(mine.candidate_ids[t], theirs.candidate_ids[t])
            np.testing.assert_allclose(mine.candidate_logp[t], theirs.candidate_logp[t], atol=1e-3)
            assert mine.tokens[t] in mine.candidate_ids[t]
            widths.add(len(mine.candidate_ids[t]))
    assert len(widths) > 2


def test_candidates_are_those_of_the_unpadded_response(teacher, tokenizer, prompts):
    for row in list(generate(teacher, tokenizer, prompts, 24).values())[:6]:
        ids = torch.tensor([[*row.prompt.ids, *row.tokens[:-1]]])
        logp = step_logp(teacher, ids, torch.ones_like(ids), len(row.tokens), len(tokenizer))[0]
        expected = top_p_candidates(logp, P)
        for t, count in enumerate(expected.counts.tolist()):
            np.testing.assert_array_equal(row.candidate_ids[t], expected.ids[t, :count])


def test_behaviour_is_the_nucleus_renormalised(teacher, tokenizer, prompts):
    for row in generate(teacher, tokenizer, prompts, 8).values():
        np.testing.assert_allclose(row.behaviour_logp, np.subtract(row.token_logp, np.log(row.kept_mass)), atol=1e-4)


def test_the_batch_plan_does_not_choose_the_tokens(teacher, tokenizer, prompts):
    plans = [generate(teacher, tokenizer, prompts, size) for size in (1, 3, 24)]
    for other in plans[1:]:
        assert other.keys() == plans[0].keys()
        equal = np.mean([other[k].tokens == plans[0][k].tokens for k in other])
        assert equal >= 0.9, f"share of equal responses {equal}"
    assert len({tuple(r.tokens) for r in plans[0].values()}) > 12, "samples of a prompt must differ"


def test_another_seed_draws_other_tokens(teacher, tokenizer, prompts):
    mine = generate(teacher, tokenizer, prompts, 24)
    other = generate(teacher, tokenizer, prompts, 24, Sampling(top_p=P, max_completion_length=16, seed=6))
    assert np.mean([mine[k].tokens == other[k].tokens for k in mine]) < 0.5


def test_noise_belongs_to_seed_prompt_sample_and_step():
    long = token_noise(1, "a", 0, 64)
    np.testing.assert_array_equal(token_noise(1, "a", 0, 10), long[:10])
    assert ((long >= 0) & (long < 1)).all()
    for other in (token_noise(2, "a", 0, 64), token_noise(1, "b", 0, 64), token_noise(1, "a", 1, 64)):
        assert not np.isclose(other, long).any()


def test_padding_rows_of_the_head_are_never_candidates(finished, tokenizer):
    data = RolloutDataset(finished[0])
    assert max(int(data[i]["candidate_ids"].max()) for i in range(len(data))) < len(tokenizer) < 304


def interrupt():
    raise KeyboardInterrupt


def test_a_roll_out_that_lost_shards_ends_with_the_same_bytes(finished, cache, make):
    _, manifest = finished
    assert len(manifest.shards) == 3
    (cache / MANIFEST).unlink()
    (cache / shard_name(2)).rename(cache / "shard-00002.parquet.partial")
    with pytest.raises(KeyboardInterrupt):
        make(cache, load=interrupt)
    with pytest.raises(CacheError, match="no complete roll-out cache"):
        RolloutDataset(cache)
    again = make(cache)
    assert again == manifest
    assert again.checksum == manifest.checksum
    assert not list(cache.glob("*.partial"))


def test_a_finished_roll_out_does_not_load_the_teacher(finished, cache, make):
    (cache / MANIFEST).unlink()
    assert make(cache, load=interrupt) == finished[1]


def test_shards_of_other_settings_are_refused(cache, tokenizer, prompts, fingerprints, teacher):
    other = Sampling(top_p=P, max_completion_length=16, seed=6)
    with pytest.raises(CacheError, match="was made with other settings"):
        roll_out(lambda: teacher, tokenizer, prompts, cache, other, CAPTURE, fingerprints, [tokenizer.eos_token_id])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.75])
def test_a_cache_cut_to_a_smaller_p_has_the_candidates_of_that_p(finished, teacher, tokenizer, p):
    directory, _ = finished
    data, whole = RolloutDataset(directory, teacher_top_p=p), RolloutDataset(directory)
    steps = differing = 0
    for i in range(len(data)):
        example = data[i]
        ids = torch.from_numpy(np.concatenate([example["input_ids"], example["response_ids"][:-1]])).unsqueeze(0)
        logp = step_logp(teacher, ids, torch.ones_like(ids), len(example["response_ids"]), len(tokenizer))[0]
        fresh = top_p_candidates(logp, p)
        assert example["legal"].sum() < whole[i]["legal"].sum()
        for t in range(len(logp)):
            mine = example["candidate_ids"][t][example["legal"][t]]
            theirs = fresh.ids[t, : int(fresh.counts[t])].numpy()
            steps += 1
            # Cached log-probs are float16: a mass that meets p to four digits may fall on either side.
            before = logp[t].exp().sort(descending=True).values.cumsum(0)
            if (before - p).abs().min() < 2e-3:
                differing += len(mine) != len(theirs)
                shorter = min(len(mine), len(theirs))
                np.testing.assert_array_equal(mine[:shorter], theirs[:shorter])
                continue
            np.testing.assert_array_equal(mine, theirs)
            np.testing.assert_allclose(example["candidate_logp"][t][example["legal"][t]], logp[t, mine], atol=2**-8)
    assert differing <= 0.02 * steps


@pytest.mark.parametrize(
    "rule", [CandidateRule(name="top_k", value=2), CandidateRule(name="min_p", value=0.5), CandidateRule(name="adaptive", value=0.1)]
)
def test_a_rule_cuts_the_candidates_of_every_step(finished, rule):
    cut, whole = RolloutDataset(finished[0], rule=rule), RolloutDataset(finished[0])
    for i in range(len(cut)):
        a, b = cut[i], whole[i]
        kept = rule_mask(rule, torch.from_numpy(b["candidate_logp"])).numpy()
        assert kept.sum() < b["legal"].sum()
        np.testing.assert_array_equal(a["legal"].sum(-1), kept.sum(-1))
        np.testing.assert_array_equal(a["candidate_ids"][a["legal"]], b["candidate_ids"][kept])
        assert a["legal"].shape[1] == kept.sum(-1).max()


def test_a_rule_needs_cached_candidates(finished):
    with pytest.raises(ConfigError, match="set teacher_top_p below 1"):
        RolloutDataset(finished[0], teacher_top_p=1.0, rule=CandidateRule(name="top_k", value=2))


def test_p_1_has_no_candidates(finished):
    assert "candidate_ids" not in RolloutDataset(finished[0], teacher_top_p=1.0)[0]


def test_references_are_scored_and_end(make, tmp_path, teacher, tokenizer):
    manifest = make(tmp_path / "human", human=True)
    data = RolloutDataset(tmp_path / "human", origins=("human",))
    assert manifest.counts["responses"] == len(data) == 12
    for i in range(len(data)):
        example = data[i]
        assert example["response_ids"][-1] == tokenizer.eos_token_id
        assert example["finished"]
        assert example["behaviour_logp"] is None
    assert {data.text(i) for i in range(12)} == {f"answer {i}" for i in range(12)}
    with pytest.raises(CacheError, match="no response of origin teacher"):
        RolloutDataset(tmp_path / "human")


def test_a_p_above_the_caches_is_refused(finished):
    with pytest.raises(CacheError, match=r"teacher_top_p=0.95 is above the 0.9"):
        RolloutDataset(finished[0], teacher_top_p=0.95)
    with pytest.raises(ConfigError, match="outside"):
        RolloutDataset(finished[0], teacher_top_p=0.0)


def test_an_altered_shard_is_refused(cache):
    path = cache / shard_name(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"shard-00001.parquet was truncated or altered"):
        RolloutDataset(cache)


def test_a_truncated_shard_is_refused(cache, make):
    path = cache / shard_name(0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CacheError, match=r"shard-00000.parquet was truncated or altered"):
        RolloutDataset(cache)
    (cache / MANIFEST).unlink()
    with pytest.raises(CacheError, match=r"shard-00000.parquet is truncated or damaged"):
        make(cache)


def test_a_missing_shard_is_refused(cache):
    (cache / shard_name(2)).unlink()
    with pytest.raises(CacheError, match=r"shard-00002.parquet is missing"):
        RolloutDataset(cache)


def test_another_teachers_cache_is_refused(finished, fingerprints, other_teacher):
    directory, _ = finished
    RolloutDataset(directory, expect=fingerprints)
    other = fingerprints | {"teacher": weights_fingerprint(find_model(str(other_teacher)))}
    with pytest.raises(CacheError, match="made with another teacher"):
        RolloutDataset(directory, expect=other)


def test_another_schema_is_refused(cache):
    manifest = json.loads((cache / MANIFEST).read_text())
    (cache / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(CacheError, match="cache schema 99"):
        open_cache(cache)
