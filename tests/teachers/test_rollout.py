import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tdistill.cache.read import open_cache
from tdistill.cache.schema import MANIFEST, SETTINGS_KEY, shard_name
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, template_fingerprint, tokenize_prompts
from tdistill.mdp.candidates import Candidates, rule_mask, top_p_candidates
from tdistill.models.find import find_model
from tdistill.models.fingerprint import weights_fingerprint
from tdistill.models.forward import step_logp
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer, tokenizer_fingerprint
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import CandidateRule, RolloutConfig
from tdistill.runtime.errors import CacheError, ConfigError
from tdistill.teachers.rollouts import Teacher, batch_plan, roll_out
from tdistill.teachers.sampling import token_noise
from tdistill.teachers.transformers import generate_batch, score_batch

P = 0.9
ROLLOUT = RolloutConfig(teacher_top_p=P, max_completion_length=16, seed=5, num_generations=2, batch_size=4, shard_batches=2)


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

    def _make(directory, load=lambda: teacher, human=False, **changes):
        asked = Teacher(load, tokenizer, [tokenizer.eos_token_id], fingerprints)
        return roll_out(asked, prompts, directory, ROLLOUT.model_copy(update=changes), human)

    return _make


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    return directory, make(directory)


@pytest.fixture
def cache(finished, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(finished[0], tmp_path / "cache")


def vocabulary(tokenizer):
    return Vocabulary(len(tokenizer), [tokenizer.eos_token_id])


def generate(teacher, tokenizer, prompts, batch_size, rollout=ROLLOUT):
    plan = batch_plan([(p, i) for p in prompts for i in range(2)], batch_size)
    rows = [r for batch in plan for r in generate_batch(teacher, batch, rollout, vocabulary(tokenizer), rollout)]
    return {(r.prompt_id, r.sample_index): r for r in rows}


def test_generation_and_scoring_of_the_same_text_record_the_same(teacher, tokenizer, prompts):
    rows = list(generate(teacher, tokenizer, prompts, 5).values())
    asked = {p.prompt.prompt_id: p for p in prompts}
    scored = score_batch(teacher, [(asked[r.prompt_id], r.response_ids) for r in rows], vocabulary(tokenizer), ROLLOUT)
    assert 0 < sum(r.finished for r in rows) < len(rows), "both endings must occur"
    widths = set()
    for mine, theirs in zip(rows, scored, strict=True):
        assert mine.response_ids == theirs.response_ids
        assert mine.finished == theirs.finished
        np.testing.assert_allclose(mine.token_logp, theirs.token_logp, atol=1e-3)
        np.testing.assert_allclose(mine.candidates.kept_mass, theirs.candidates.kept_mass, atol=1e-3)
        np.testing.assert_array_equal(mine.candidates.counts, theirs.candidates.counts)
        np.testing.assert_array_equal(mine.candidates.ids, theirs.candidates.ids)
        np.testing.assert_allclose(mine.candidates.logp, theirs.candidates.logp, atol=1e-3)
        for token, state in zip(mine.response_ids, mine.candidates.split(), strict=True):
            assert token in state.ids
            widths.add(len(state.ids))
    assert len(widths) > 2


def test_candidates_are_those_of_the_unpadded_response(teacher, tokenizer, prompts):
    for row in list(generate(teacher, tokenizer, prompts, 24).values())[:6]:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids[:-1]]])
        logp = step_logp(teacher, ids, torch.ones_like(ids), len(row.response_ids), len(tokenizer))[0]
        expected = top_p_candidates(logp, P)
        for t, count in enumerate(expected.counts.tolist()):
            np.testing.assert_array_equal(row.candidates.split()[t].ids, expected.ids[t, :count])


def test_behaviour_is_the_nucleus_renormalised(teacher, tokenizer, prompts):
    for row in generate(teacher, tokenizer, prompts, 8).values():
        np.testing.assert_allclose(row.behaviour_logp, np.subtract(row.token_logp, np.log(row.candidates.kept_mass)), atol=1e-4)


def test_the_batch_plan_does_not_choose_the_tokens(teacher, tokenizer, prompts):
    plans = [generate(teacher, tokenizer, prompts, size) for size in (1, 3, 24)]
    for other in plans[1:]:
        assert other.keys() == plans[0].keys()
        equal = np.mean([other[k].response_ids == plans[0][k].response_ids for k in other])
        assert equal >= 0.9, f"share of equal responses {equal}"
    assert len({tuple(r.response_ids) for r in plans[0].values()}) > 12, "samples of a prompt must differ"


def test_another_seed_draws_other_tokens(teacher, tokenizer, prompts):
    mine = generate(teacher, tokenizer, prompts, 24)
    other = generate(teacher, tokenizer, prompts, 24, ROLLOUT.model_copy(update={"seed": 6}))
    assert np.mean([mine[k].response_ids == other[k].response_ids for k in mine]) < 0.5


def test_noise_belongs_to_seed_prompt_sample_and_step():
    long = token_noise(1, "a", 0, 64)
    np.testing.assert_array_equal(token_noise(1, "a", 0, 10), long[:10])
    assert ((long >= 0) & (long < 1)).all()
    for other in (token_noise(2, "a", 0, 64), token_noise(1, "b", 0, 64), token_noise(1, "a", 1, 64)):
        assert not np.isclose(other, long).any()


def test_padding_rows_of_the_head_are_never_candidates(finished, tokenizer):
    data = RolloutDataset(finished[0])
    assert max(int(data[i]["candidates"].ids.max()) for i in range(len(data))) < len(tokenizer) < 304


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


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def pairs_of(directory):
    table = open_cache(directory)[1]
    return sorted(zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True))


EVERY_PAIR = sorted((f"p{i}", sample) for i in range(12) for sample in range(2))


def test_another_batch_size_makes_nothing_of_a_finished_cache_anew(finished, cache, make):
    assert make(cache, load=interrupt, batch_size=5, shard_batches=1) == finished[1]
    assert bytes_of(cache) == bytes_of(finished[0])


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("sizes", [(4, 2), (3, 1), (24, 4)], ids=["same plan", "smaller batches", "larger batches"])
def test_a_killed_cache_keeps_its_shards_under_any_batch_size(finished, cache, make, lost, sizes):
    (cache / MANIFEST).unlink()
    for index in lost:
        (cache / shard_name(index)).unlink()
    kept = {path.read_bytes() for path in cache.iterdir()}
    manifest = make(cache, batch_size=sizes[0], shard_batches=sizes[1])
    assert kept <= {path.read_bytes() for path in cache.iterdir()}
    assert pairs_of(cache) == EVERY_PAIR
    assert manifest.counts["responses"] == 24
    assert sorted(manifest.shards) == [shard_name(i) for i in range(len(manifest.shards))]
    if sizes == (4, 2):
        assert bytes_of(cache) == bytes_of(finished[0])


def test_a_finished_cache_that_lost_a_shard_gets_the_same_shard_again(finished, cache, make):
    (cache / shard_name(1)).unlink()
    assert make(cache, batch_size=3, shard_batches=1) == finished[1]
    assert bytes_of(cache) == bytes_of(finished[0])


def test_a_killed_cache_of_references_keeps_its_shards_under_another_batch_size(make, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    whole = make(first, human=True)
    shutil.copytree(first, again)
    (again / MANIFEST).unlink()
    (again / shard_name(0)).unlink()
    kept = (again / shard_name(1)).read_bytes()
    manifest = make(again, human=True, batch_size=3, shard_batches=1)
    assert manifest.counts == whole.counts
    assert kept in {path.read_bytes() for path in again.iterdir()}
    assert pairs_of(again) == pairs_of(first)


def test_a_shard_with_responses_that_nobody_asked_for_is_refused(cache, make):
    (cache / MANIFEST).unlink()
    (cache / shard_name(9)).write_bytes((cache / shard_name(0)).read_bytes())
    with pytest.raises(CacheError, match="that this roll-out does not ask for, or holds it twice"):
        make(cache, load=interrupt)


def test_a_shard_that_names_a_batch_size_in_its_settings_is_read(finished, cache, make):
    """Caches of earlier versions do, and their manifests too."""
    plan = {"batch_size": 4, "shard_batches": 2}
    old = json.loads((cache / MANIFEST).read_text())
    settings = old["settings"] | plan
    for index in range(3):
        table = pq.read_table(cache / shard_name(index))
        metadata = {SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), cache / shard_name(index), compression="zstd", write_page_checksum=True)
    (cache / MANIFEST).unlink()
    kept = {path.name: path.read_bytes() for path in cache.glob("*.parquet")}
    checksums = make(cache, load=interrupt, batch_size=7).shards
    old_manifest = {k: v for k, v in (old | {"settings": settings, "shards": checksums}).items() if k != "plan"}
    (cache / MANIFEST).write_text(json.dumps(old_manifest))
    assert make(cache, load=interrupt, batch_size=5).rollout.batch_size == 4
    assert {path.name: path.read_bytes() for path in cache.glob("*.parquet")} == kept
    assert len(RolloutDataset(cache)) == 24


def test_shards_of_other_settings_are_refused(cache, make):
    with pytest.raises(CacheError, match="was made with other settings"):
        make(cache, seed=6)


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
        assert len(example["candidates"].ids) < len(whole[i]["candidates"].ids)
        found = Candidates.from_ragged(example["candidates"])
        for t in range(len(logp)):
            mine = found.ids[t][found.legal[t]].numpy()
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
            np.testing.assert_allclose(found.logp[t][found.legal[t]], logp[t, mine], atol=2**-8)
    assert differing <= 0.02 * steps


@pytest.mark.parametrize(
    "rule", [CandidateRule(name="top_k", value=2), CandidateRule(name="min_p", value=0.5), CandidateRule(name="adaptive", value=0.1)]
)
def test_a_rule_cuts_the_candidates_of_every_step(finished, rule):
    cut, whole = RolloutDataset(finished[0], rule=rule), RolloutDataset(finished[0])
    for i in range(len(cut)):
        a, b = (Candidates.from_ragged(data[i]["candidates"]) for data in (cut, whole))
        kept = rule_mask(rule, b.logp)
        assert kept.sum() < b.legal.sum()
        assert torch.equal(a.counts, kept.sum(-1))
        assert torch.equal(a.ids[a.legal], b.ids[kept])
        assert a.legal.shape[1] == kept.sum(-1).max()


def test_a_rule_needs_cached_candidates(finished):
    with pytest.raises(ConfigError, match="set teacher_top_p below 1"):
        RolloutDataset(finished[0], teacher_top_p=1.0, rule=CandidateRule(name="top_k", value=2))


def test_p_1_has_no_candidates(finished):
    assert "candidates" not in RolloutDataset(finished[0], teacher_top_p=1.0)[0]


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
