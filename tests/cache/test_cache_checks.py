"""What a roll-out cache can't hold is refused, with the shard, the row and what to do."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.test_caches import SHARD, VOCAB, caches, rows_of, seal  # noqa: F401

from tdistill.cache.read import open_cache, read_shard
from tdistill.cache.schema import MANIFEST, SCHEMA
from tdistill.cache.write import finish_cache
from tdistill.data.dataset import RolloutDataset
from tdistill.runtime.errors import CacheError

COMMITTED = sorted(Path(__file__).parents[2].glob("benchmarks/*/rollouts/*/manifest.json"))


@pytest.fixture
def cache(caches, tmp_path):  # noqa: F811
    return shutil.copytree(caches["sampled"], tmp_path / "cache")


def put(name, value, at=0):
    def change(rows):
        rows[1][name][at] = value

    return change


def swap(name):
    def change(rows):
        values = rows[1][name]
        values[0], values[1] = values[1], values[0]

    return change


CHANGES = {
    "a positive log-prob": (put("candidate_logp", 0.5), r"row 1: candidate_logp\[0\] is 0.5, and a log-probability is finite and at most 0"),
    "a NaN": (put("token_logp", math.nan), r"token_logp\[0\] is nan"),
    "an infinite one": (put("behaviour_logp", -math.inf), r"behaviour_logp\[0\] is -inf"),
    "an id beyond the vocabulary": (put("candidate_ids", VOCAB), rf"candidate_ids\[0\] is {VOCAB}, and token ids lie below {VOCAB}"),
    "a negative id": (put("response_ids", 2**32 - 1), r"response_ids\[0\] is 4294967295"),
    "no candidate": (put("candidate_count", 0), "every token has at least one candidate"),
    "a negative count": (put("candidate_count", -1), r"candidate_count\[0\] is -1"),
    "counts that do not add up": (put("candidate_count", 2**31 - 1), "not as many entries as candidate_count says"),
    "a mass above 1": (put("kept_mass", 1.1), r"kept_mass\[0\] is .*, and a share of the probability lies in \(0, 1\]"),
    "another mass": (put("kept_mass", 0.999), "not the sum of the candidates' probabilities"),
    "candidates out of order": (swap("candidate_logp"), "candidates go from the most probable down"),
    "a candidate twice": (lambda rows: rows[1]["candidate_ids"].__setitem__(1, rows[1]["candidate_ids"][0]), "stands twice"),
    "another log-prob of the token": (put("token_logp", -9.0), "token_logp is not the log-probability that the same token has"),
    "a list too long": (lambda rows: rows[1]["kept_mass"].append(0.8), "kept_mass has not one entry for every token"),
    "an empty response": (lambda rows: rows[1].update(response_ids=[]), "response_ids is empty"),
    "an empty prompt": (lambda rows: rows[1].update(prompt_ids=[]), "prompt_ids is empty"),
    "finished without an end": (lambda rows: rows[1].update(finished=not rows[1]["finished"]), "its last token ends"),
    "a null": (lambda rows: rows[1].update(text=None), "row 1: text is null"),
    "a null in a list": (put("kept_mass", None), "a list in kept_mass holds null"),
    "another author": (lambda rows: rows[1].update(origin="student"), "row 1: origin must be teacher"),
    "an unknown prompt": (lambda rows: rows[1].update(prompt_id="p9"), "prompt_id is none of the prompts"),
    "another prompt's tokens": (lambda rows: rows[1]["prompt_ids"].append(7), "prompt_ids differ from those of the same prompt"),
    "a negative sample": (lambda rows: rows[1].update(sample_index=-1), "sample_index is negative"),
    "a sample twice": (lambda rows: [r.update(sample_index=0) for r in rows], "twice or beyond num_generations=2"),
    "a response too few": (lambda rows: rows.pop(), "holds 1 responses to prompt"),
    "no rows": (lambda rows: rows.clear(), "`counts.responses`"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_that_no_teacher_gave_is_refused(cache, name):
    change, message = CHANGES[name]
    rows = rows_of(open_cache(cache)[1])
    change(rows)
    seal(cache, rows)
    with pytest.raises(CacheError, match=message) as caught:
        RolloutDataset(cache, vocab_size=VOCAB)
    assert "run `tdistill rollout` again" in str(caught.value) or "run again" in str(caught.value)


def test_untouched_rows_are_read(cache):
    manifest, table = open_cache(cache)
    seal(cache, rows_of(table))
    assert open_cache(cache)[1].equals(table)
    assert open_cache(cache)[0].counts == manifest.counts


@pytest.mark.parametrize("change", ["float ids", "a column less", "a column more"])
def test_other_columns_are_refused(cache, change):
    rows = rows_of(open_cache(cache)[1])
    if change == "float ids":
        schema = SCHEMA.set(SCHEMA.get_field_index("candidate_ids"), pa.field("candidate_ids", pa.list_(pa.float64())))
    else:
        schema = (
            SCHEMA.append(pa.field("more", pa.int32())) if change == "a column more" else pa.schema([f for f in SCHEMA if f.name != "text"])
        )
    seal(cache, rows, schema)
    with pytest.raises(CacheError, match="has other columns than a roll-out cache"):
        open_cache(cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": {"../../x.parquet": "0" * 64}}, "`shards` must name shard-00000.parquet and so on, not '../../x.parquet'"),
        ({"shards": {"/dev/zero": "0" * 64}}, "not '/dev/zero'"),
        ({"shards": {}}, "`shards`"),
        ({"shards": {SHARD: "short"}}, "should match pattern"),
        ({"shards": {SHARD: "0" * 64, "shard-00001.parquet": "0" * 64}}, "each another file"),
        ({"shards": {"shard-00001.parquet": "0" * 64}}, "not 'shard-00000.parquet', 'shard-00001.parquet'"),
        ({"counts": {"responses": -1, "finished": 0, "tokens": 1, "candidates": 1}}, "`counts.responses`"),
        ({"counts": {"responses": 5, "finished": 0, "tokens": 1, "candidates": 1}}, "does not fit the shards' rows"),
        ({"settings": []}, "`settings`"),
        ({"settings": {}}, "`settings.teacher_top_p`: Field required"),
        ({"schema_version": "1"}, "`schema_version`"),
        ({"candidate_logp_max_error": math.nan}, "`candidate_logp_max_error`"),
        ({"more": 1}, "`more`: Extra inputs are not permitted"),
    ],
)
def test_a_malformed_manifest_names_the_place(cache, change, message):
    manifest = json.loads((cache / MANIFEST).read_text())
    (cache / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(CacheError, match=re.escape(message)):
        open_cache(cache)


def test_settings_of_a_manifest_are_those_of_its_shards(cache):
    manifest = json.loads((cache / MANIFEST).read_text())
    manifest["settings"]["temperature"] = 2.0
    (cache / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="was made with other settings"):
        open_cache(cache)


@pytest.mark.parametrize("kind", ["directory", "loop", "link outside"])
def test_a_shard_that_is_no_file_is_refused(cache, kind, tmp_path):
    path = cache / SHARD
    path.unlink()
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    with pytest.raises(CacheError, match="is missing"):
        open_cache(cache)


def test_a_damaged_shard_is_not_taken_for_whole_while_its_stage_is_not_complete(cache):
    """Every byte flipped in turn: with the manifest of a stopped stage, and, for the pages' content, without."""
    settings, path = open_cache(cache)[0].settings, cache / SHARD
    content, manifest = path.read_bytes(), (cache / MANIFEST).read_bytes()
    table = pq.read_table(path)
    for at in range(0, len(content), 37):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(CacheError):
            finish_cache(cache, settings, 1)
        assert (cache / MANIFEST).read_bytes() == manifest, "it is not blessed anew"
        (cache / MANIFEST).unlink()
        try:
            read_shard(path, settings)
        except CacheError:
            pass
        else:  # a byte that says nothing, such as a statistic that is not read
            assert pq.read_table(path).equals(table)
        (cache / MANIFEST).write_bytes(manifest)


@pytest.mark.parametrize("manifest", COMMITTED, ids=lambda p: p.parent.name)
def test_caches_in_the_repository_are_read(manifest):
    data = RolloutDataset(manifest.parent, vocab_size=49_152)
    assert len(data) == data.manifest.counts["responses"]
    assert np.isfinite(data[0]["candidates"].logp).all()


def test_the_repository_holds_caches():
    assert {m.parent.name for m in COMMITTED} >= {"train", "valid", "test"}
