"""Read roll-out caches: check every shard and every value in it, so that training relies on what a teacher can have given."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdistill.cache.check import ShardCheck, check_completeness
from tdistill.cache.schema import ADVICE, MANIFEST, SCHEMA, SETTINGS_KEY, CacheManifest, canonical, read_manifest_file, shard_name
from tdistill.runtime.errors import CacheError
from tdistill.runtime.hashes import file_sha256

MOST_ROWS_PER_PROMPT = 1_000_000  # of a shard; a damaged footer may claim any number
_SHARD = re.compile(r"shard-(\d{5,})\.parquet")


def finished_shards(directory: Path, settings: dict[str, Any]) -> Iterator[tuple[int, pa.Table]]:
    """Read the shards that stand in a directory, in the order of their numbers, and check each of them.

    Raises:
        CacheError: a shard is damaged, or was made with other settings.
    """
    numbers = sorted(int(match[1]) for name in os.listdir(directory) if (match := _SHARD.fullmatch(name)))
    for number in numbers:
        yield number, read_shard(directory / shard_name(number), settings)


def read_shard(path: Path, settings: dict[str, Any], vocab_size: int | None = None) -> pa.Table:
    """Read one shard and check every value in it.

    Raises:
        CacheError: it can't be read, has other columns, was made with other settings, or see ``ShardCheck``.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(path, file, settings)
            table = file.read()
        table.validate(full=True)
    except CacheError:
        raise
    except Exception as error:  # pyarrow has a dozen kinds of errors for damaged files, from OSError to UnicodeDecodeError
        raise CacheError(f"{path} is truncated or damaged ({type(error).__name__}: {error}). Delete it and run again.") from error
    ShardCheck(table, settings, path, vocab_size)
    return table


def _check_columns(path: Path, file: pq.ParquetFile, settings: dict[str, Any]) -> None:
    schema = file.schema_arrow
    if not schema.equals(SCHEMA, check_metadata=False):
        wanted, got = set(map(str, SCHEMA)), set(map(str, schema))
        named = sorted(wanted ^ got) or ["their order"]
        raise CacheError(f"{path} has other columns than a roll-out cache: {', '.join(named)}. Delete it and run again.")
    if canonical(json.loads((schema.metadata or {}).get(SETTINGS_KEY, b"{}"))) != canonical(settings):
        raise CacheError(f"{path} was made with other settings. Use another output_dir, or delete it.")
    most = len(settings["prompts"]) * MOST_ROWS_PER_PROMPT
    if not 1 <= file.metadata.num_rows <= most:
        raise CacheError(f"{path} claims {file.metadata.num_rows:,} responses to {len(settings['prompts'])} prompts. Delete it and run again.")


def survey(tables: Iterable[pa.Table], settings: dict[str, Any], directory: Path) -> tuple[dict[str, int], float]:
    """Count what the shards hold together, and find the largest rounding error of a candidate's log-probability, in nats."""
    rows: list[tuple[str, int]] = []
    counts, least = dict.fromkeys(("responses", "finished", "tokens", "candidates"), 0), 0.0
    for table in tables:  # one at a time: a cache may be larger than the memory
        rows += zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
        logp = table["candidate_logp"].combine_chunks().flatten().to_numpy()
        counts["responses"] += len(table)
        counts["finished"] += int(table["finished"].to_numpy().sum())
        counts["tokens"] += len(table["response_ids"].combine_chunks().flatten())
        counts["candidates"] += len(logp)
        least = min(least, float(logp.min()))
    check_completeness(rows, settings, directory)
    return counts, float(np.spacing(np.float16(abs(least)))) / 2.0


def read_manifest(directory: Path) -> CacheManifest:
    """Read a finished cache's manifest.

    Raises:
        CacheError: there is none, it is malformed, or it has another schema.
    """
    if not os.path.lexists(directory / MANIFEST):
        raise CacheError(f"{directory} holds no complete roll-out cache (no {MANIFEST}): run `tdistill rollout` first.")
    return CacheManifest(**read_manifest_file(directory / MANIFEST))


def open_cache(directory: Path, expect: dict[str, Any] | None = None, vocab_size: int | None = None) -> tuple[CacheManifest, pa.Table]:
    """Read the manifest and all rows, and check them.

    Args:
        directory: where the shards lie.
        expect: settings that must be those of the cache, such as ``teacher``, ``tokenizer`` and ``template`` fingerprints.
        vocab_size: token ids must lie below it, where it is known.

    Raises:
        CacheError: not complete, damaged, of another schema, of another teacher, tokenizer or template, or its rows are not what a
            teacher can have given.
    """
    manifest = read_manifest(directory)
    for key, value in (expect or {}).items():
        if manifest.settings.get(key) != value:
            raise CacheError(
                f"The cache {directory} was made with another {key}: it has {manifest.settings.get(key)!r}, this run {value!r}. "
                "Roll out again, or point the recipe at the cache's own."
            )
    check_shards(directory, manifest, {n: file_sha256(directory / n) for n in manifest.shards if (directory / n).is_file()})
    tables = [read_shard(directory / n, manifest.settings, vocab_size) for n in manifest.shards]
    counts, rounding = survey(tables, manifest.settings, directory)
    if manifest.counts != counts or manifest.candidate_logp_max_error != rounding:
        raise CacheError(f"{directory / MANIFEST} does not fit the shards' rows: {manifest.counts}, but they have {counts}. {ADVICE}")
    return manifest, pa.concat_tables(tables)


def check_shards(directory: Path, manifest: CacheManifest, checksums: dict[str, str]) -> None:
    """Compare the checksums of shards with those that a manifest names.

    Raises:
        CacheError: a shard is missing, or another.
    """
    for name, checksum in manifest.shards.items():
        if name not in checksums:
            raise CacheError(f"{directory / name} is missing. Delete {MANIFEST} and run `tdistill rollout` again to restore it.")
        if checksums[name] != checksum:
            raise CacheError(f"{directory / name} was truncated or altered (checksum differs). Delete it and {MANIFEST}, and run again.")
