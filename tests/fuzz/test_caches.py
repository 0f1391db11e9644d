"""Damaged and foreign roll-out caches: read as they were, consistent, or refused."""

import hashlib
import json
import math
import random
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuzz.mutate import HOSTILE, mutated_bytes, mutated_values
from tdistill.cache.read import open_cache, read_shard
from tdistill.cache.schema import MANIFEST, SCHEMA, SETTINGS_KEY, shard_name
from tdistill.cache.write import finish_cache
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.recipe.schema import RolloutConfig
from tdistill.runtime.errors import CacheError
from tdistill.teachers.rollouts import Teacher, roll_out

SHARD = shard_name(0)
VOCAB = 257


@pytest.fixture(scope="module")
def caches(tiny_teacher, tmp_path_factory):
    """One directory for each kind of cache that is written here: as sampled, capped, and human."""
    model, tokenizer = load_model(find_model(str(tiny_teacher))), load_tokenizer(find_model(str(tiny_teacher)))
    asked = [Prompt(f"p{i}", ({"role": "user", "content": "why" + "?" * i},), (f"so {i}", "for that")) for i in range(2)]
    prompts = tokenize_prompts(asked, tokenizer, 64, "refuse")[0]
    about = {"teacher": "t" * 16, "tokenizer": "u" * 16, "template": "v" * 16}
    kinds = {"sampled": (None, False), "capped": (3, False), "human": (None, True)}
    found = {}
    for name, (cap, human) in kinds.items():
        directory = tmp_path_factory.mktemp(name)
        drawn = {"max_completion_length": 10, "seed": 3, "num_generations": 2, "batch_size": 4, "shard_batches": 1}
        teacher = Teacher(lambda: model, tokenizer, [tokenizer.eos_token_id], about)
        roll_out(teacher, prompts, directory, RolloutConfig(teacher_top_p=0.8, max_candidates=cap, **drawn), human)
        found[name] = directory
    return found


@pytest.fixture
def cache(caches, tmp_path):
    return shutil.copytree(caches["sampled"], tmp_path / "cache")


def rows_of(table):
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in table.to_pylist()]


def seal(directory, rows, schema=SCHEMA, settings=None, manifest=None):
    """Write rows as a foreign program would that knows the format: checksum, counts and settings fit."""
    valid = json.loads((directory / MANIFEST).read_text())
    settings = valid["settings"] if settings is None else settings
    table = pa.Table.from_pylist(rows, schema=schema)
    table = table.replace_schema_metadata({SETTINGS_KEY: json.dumps(settings, sort_keys=True).encode()})
    pq.write_table(table, directory / SHARD, compression="zstd")
    counts = {
        "responses": len(rows),
        "finished": sum(r.get("finished") is True for r in rows),
        "tokens": sum(len(r["response_ids"]) for r in rows if isinstance(r.get("response_ids"), list)),
        "candidates": sum(len(r["candidate_ids"]) for r in rows if isinstance(r.get("candidate_ids"), list)),
    }
    logp = [x for r in rows for x in (r.get("candidate_logp") or []) if isinstance(x, float) and math.isfinite(x)] or [0.0]
    about = valid | {
        "settings": settings,
        "counts": counts,
        "shards": {SHARD: hashlib.sha256((directory / SHARD).read_bytes()).hexdigest()},
        "candidate_logp_max_error": float(np.spacing(np.float16(abs(min(logp))))) / 2,
    }
    (directory / MANIFEST).write_text(json.dumps(about | (manifest or {})))


def read(directory):
    """Read a cache as training does, every example at two p."""
    manifest, table = open_cache(directory, vocab_size=VOCAB)
    for p in (None, 0.5):
        data = RolloutDataset(directory, p, ("teacher", "human"), vocab_size=VOCAB)
        examples = [data[i] for i in range(len(data))]
        assert all(np.isfinite(e["candidates"].logp).all() for e in examples)
    return manifest, table


def consistent(rows, settings):
    """Say whether rows can be a teacher's, token by token in plain Python: the oracle of the vectorised checks."""
    p, cap, longest, eos = (settings[k] for k in ("teacher_top_p", "max_candidates", "max_completion_length", "eos_ids"))
    asked = Counter(dict.fromkeys(settings["prompts"], settings["num_generations"]))
    if settings.get("origin") == "teacher" and Counter(r["prompt_id"] for r in rows) != asked:
        return False
    return all(_consistent_row(r, p, cap, longest, eos) for r in rows)


def _consistent_row(row, p, cap, longest, eos):
    steps, at = len(row["response_ids"]), 0
    if not 1 <= steps <= longest or not row["prompt_ids"] or row["sample_index"] < 0:
        return False
    if (row["response_ids"][-1] in eos) != row["finished"] or max(row["prompt_ids"]) >= VOCAB:
        return False
    if any(len(row[k]) != steps for k in ("candidate_count", "kept_mass", "token_logp")):
        return False
    if row["behaviour_logp"] is not None and not all(x <= 1e-3 and math.isfinite(x) for x in row["behaviour_logp"]):
        return False
    for t in range(steps):
        n = row["candidate_count"][t]
        ids, logp = row["candidate_ids"][at : at + n], row["candidate_logp"][at : at + n]
        at += n
        if n < 1 or len(set(ids)) != n or max(ids) >= VOCAB or (cap and n > cap) or len(logp) != n:
            return False
        if sorted(logp, reverse=True) != logp or not all(math.isfinite(x) and x <= 0 for x in logp):
            return False
        kept, mass, slack = row["kept_mass"][t], sum(map(math.exp, logp)), 0.006
        if not 0 < kept <= 1.001 or abs(kept - mass) > slack or mass - math.exp(logp[-1]) > p + slack or (kept < p - slack and n != cap):
            return False
        token, taken = row["token_logp"][t], row["response_ids"][t]
        if not math.isfinite(token) or token > 1e-5:
            return False
        if taken in ids and abs(token - logp[ids.index(taken)]) > 0.006:
            return False
        if taken not in ids and token > logp[-1] + 0.006:
            return False
    return at == len(row["candidate_ids"]) == len(row["candidate_logp"])


def fuzz_bytes(outcomes, caches, tmp_path, name, count, seed):
    """Damage a file's bytes in a complete cache."""
    directory = shutil.copytree(caches["sampled"], tmp_path / "cache")
    valid, path = read(directory), directory / name

    def attempt(content):
        path.write_bytes(content)
        return read(directory)

    def is_right(_, result):  # the version is there to be read by people: nothing depends on it
        return replace(result[0], tdistill_version="") == replace(valid[0], tdistill_version="") and result[1].equals(valid[1])

    outcomes(f"cache: {name.partition('.')[2]}", mutated_bytes(path.read_bytes(), seed, count), attempt, is_right)


def fuzz_unsealed(outcomes, caches, tmp_path, count, seed):
    """Damage a shard that no manifest vouches for, as a killed run leaves it."""
    directory = shutil.copytree(caches["sampled"], tmp_path / "cache")
    manifest, table = read(directory)
    path = directory / SHARD
    inputs = mutated_bytes(path.read_bytes(), seed, count)

    def attempt(content):
        (directory / MANIFEST).unlink(missing_ok=True)
        path.write_bytes(content)
        read_shard(directory / SHARD, manifest.settings)
        finish_cache(directory, manifest.settings, 1)
        return read(directory)[1]

    outcomes("cache: unsealed shard", inputs, attempt, lambda _, result: result.equals(table))


def fuzz_foreign_bytes(outcomes, caches, tmp_path, count, seed):
    """Damage a shard and give the manifest the checksum of what came out."""
    directory = shutil.copytree(caches["sampled"], tmp_path / "cache")
    manifest, _ = read(directory)
    about = json.loads((directory / MANIFEST).read_text())
    path = directory / SHARD

    def attempt(content):
        path.write_bytes(content)
        sealed = about | {"shards": {SHARD: hashlib.sha256(content).hexdigest()}}
        (directory / MANIFEST).write_text(json.dumps(sealed))
        return read(directory)[1]

    inputs = mutated_bytes(path.read_bytes(), seed, count)
    outcomes("cache: foreign bytes", inputs, attempt, lambda _, result: consistent(rows_of(result), manifest.settings))


def fuzz_rows(outcomes, caches, tmp_path, kind, count, seed):
    """Change values of rows, and seal them with fitting counts and checksum."""
    directory = shutil.copytree(caches[kind], tmp_path / kind)
    manifest, table = read(directory)
    rows, rng = rows_of(table), random.Random(seed)

    def inputs():
        yield rows
        yield from mutated_values(rows, seed, count // 2)
        for _ in range(count // 2):
            yield changed_row(rng, rows)

    def attempt(changed):
        try:
            seal(directory, changed)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError, UnicodeEncodeError) as error:
            raise CacheError(f"no Parquet file can hold these rows: {error}") from error
        return read(directory)[1]

    counts = outcomes(f"cache: {kind} rows", inputs(), attempt, lambda _, result: consistent(rows_of(result), manifest.settings))
    assert counts["accepted"] > 0, "the untouched rows are accepted"


WHOLE = (0, 1, 2, 3, 7, 255, 256, 257, 300, 2**31 - 1, 2**31, 2**32 - 1, -1)
VALUES = (*WHOLE, 0.0, -0.0, 0.5, -0.5, 2e-3, 1.1, -1e4, math.nan, math.inf, -math.inf, None)


def changed_row(rng, rows):
    """Change one number, or swap, drop, double or reverse entries of one list."""
    rows = [{k: list(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    row = rng.choice(rows)
    name = rng.choice([k for k, v in row.items() if isinstance(v, list)])
    values = row[name]
    at, other = rng.randrange(len(values)), rng.randrange(len(values))
    kind = rng.choice(("set", "set", "nudge", "swap", "drop", "double", "reverse", "move", "row"))
    if kind == "set":
        values[at] = rng.choice(VALUES)
    elif kind == "nudge":
        values[at] += rng.choice((1, -1)) if isinstance(values[at], int) else rng.choice((0.1, -0.1, 1e-5, -1e-5))
    elif kind == "swap":
        values[at], values[other] = values[other], values[at]
    elif kind == "drop":
        del values[at]
    elif kind == "double":
        values.insert(at, values[at])
    elif kind == "reverse":
        values.reverse()
    elif kind == "move":
        row[name] = rng.choice(rows)[name]
    elif kind == "row":
        rng.choice((rows.pop, lambda: rows.append(row), rows.reverse))()
    return rows


def fuzz_manifest_values(outcomes, caches, tmp_path, count, seed):
    """Change values of the manifest, its settings in the shard too."""
    directory = shutil.copytree(caches["sampled"], tmp_path / "cache")
    manifest, table = read(directory)
    rows, about = rows_of(table), json.loads((directory / MANIFEST).read_text())
    rest = {k: v for k, v in about.items() if k not in ("settings", "shards")}

    def attempt(changed):
        try:
            if isinstance(changed, dict) and changed.keys() >= {"settings", "rest"}:
                seal(directory, rows, settings=changed["settings"], manifest=changed["rest"] if isinstance(changed["rest"], dict) else {})
            else:
                (directory / MANIFEST).write_text(json.dumps(changed))
        except (ValueError, UnicodeEncodeError, TypeError, RecursionError) as error:
            raise CacheError(f"no JSON file can hold this: {error}") from error
        return read(directory)

    def is_right(_, result):
        found, settings = result[0], result[0].settings
        same = found.counts == manifest.counts and result[1].equals(table)
        return same and consistent(rows, settings) and 0 < settings["temperature"] < math.inf

    inputs = mutated_values({"settings": about["settings"], "rest": rest}, seed, count)
    outcomes("cache: manifest values", inputs, attempt, is_right)


def test_damaged_files_of_a_complete_cache(outcomes, caches, tmp_path):
    fuzz_bytes(outcomes, caches, tmp_path / "a", MANIFEST, 100, 1)
    fuzz_bytes(outcomes, caches, tmp_path / "b", SHARD, 60, 2)


def test_damaged_shards_without_a_manifest(outcomes, caches, tmp_path):
    fuzz_unsealed(outcomes, caches, tmp_path, 100, 3)


def test_foreign_bytes_with_a_fitting_checksum(outcomes, caches, tmp_path):
    fuzz_foreign_bytes(outcomes, caches, tmp_path, 100, 4)


@pytest.mark.parametrize("kind", ["sampled", "capped", "human"])
def test_foreign_rows(outcomes, caches, tmp_path, kind):
    fuzz_rows(outcomes, caches, tmp_path, kind, 120, 5)


def test_foreign_manifests(outcomes, caches, tmp_path):
    fuzz_manifest_values(outcomes, caches, tmp_path, 150, 6)


@pytest.mark.slow
def test_many_damaged_caches(outcomes, caches, tmp_path):
    fuzz_bytes(outcomes, caches, tmp_path / "a", MANIFEST, 1000, 11)
    fuzz_bytes(outcomes, caches, tmp_path / "b", SHARD, 500, 12)
    fuzz_unsealed(outcomes, caches, tmp_path / "c", 1500, 13)
    fuzz_foreign_bytes(outcomes, caches, tmp_path / "d", 2000, 14)
    for i, kind in enumerate(caches):
        fuzz_rows(outcomes, caches, tmp_path / f"e{i}", kind, 1500, 15 + i)
    fuzz_manifest_values(outcomes, caches, tmp_path / "f", 2000, 19)


@pytest.mark.parametrize("value", [v for v in HOSTILE if not isinstance(v, int) or abs(v) < 10**300], ids=lambda v: repr(v)[:20])
def test_a_manifest_that_is_another_value_is_refused(cache, value):
    (cache / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(CacheError, match=MANIFEST):
        read(cache)
