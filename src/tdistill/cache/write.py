"""Store the roll-out cache: Parquet shards, one response a row, and a manifest written last.

A shard gets its name only when it is whole (temporary file, fsync, rename), and carries the settings it was made with. So a
killed run keeps every finished shard, and what has no name does not count.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdistill.cache.check import ShardCheck, check_completeness
from tdistill.cache.manifest import ADVICE, MANIFEST, SCHEMA_VERSION, read_manifest_file, shard_name
from tdistill.runtime.errors import CacheError
from tdistill.runtime.files import replacing, write_json
from tdistill.runtime.hashes import file_sha256

MOST_ROWS_PER_PROMPT = 1_000_000  # of a shard; a damaged footer may claim any number
SETTINGS_KEY = b"tdistill.settings"
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("origin", pa.string()),  # teacher | student | mixed | human
        ("policy_id", pa.string()),  # fingerprint of the model that wrote the response
        ("prompt_ids", pa.list_(pa.uint32())),
        ("response_ids", pa.list_(pa.uint32())),
        ("finished", pa.bool_()),  # ended by an end-of-text token, not by the length limit
        ("text", pa.string()),
        ("candidate_count", pa.list_(pa.int32())),  # per token: |A_p|
        ("kept_mass", pa.list_(pa.float32())),  # per token: the teacher's mass on A_p
        ("token_logp", pa.list_(pa.float32())),  # per token: the teacher's log-prob of it, true
        (
            "behaviour_logp",
            pa.list_(pa.float32()),
        ),  # per token: under the distribution it was sampled from; null for human text
        ("candidate_ids", pa.list_(pa.uint32())),  # ragged, concatenated over tokens, descending per token
        ("candidate_logp", pa.list_(pa.float16())),
    ]
)


@dataclass(frozen=True)
class Response:
    """Hold one response, which is one row of the cache. Arrays are per token; ``candidate_*`` are concatenated over tokens by
    ``candidate_count``.
    """

    prompt_id: str
    sample_index: int
    origin: str
    policy_id: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    finished: bool
    text: str
    candidate_count: np.ndarray
    kept_mass: np.ndarray
    token_logp: np.ndarray
    behaviour_logp: np.ndarray | None
    candidate_ids: np.ndarray
    candidate_logp: np.ndarray


@dataclass(frozen=True)
class Manifest:
    """Describe a finished cache. ``settings`` is all that shaped its content."""

    settings: dict[str, Any]
    counts: dict[str, int]
    shards: dict[str, str]  # file → SHA-256
    tdistill_version: str
    candidate_logp_max_error: float  # nats: half the spacing of float16 at the least probable candidate
    schema_version: int = SCHEMA_VERSION

    @property
    def teacher_top_p(self) -> float:
        """Return the p that the cache was made with: it serves every p up to it."""
        return float(self.settings["teacher_top_p"])

    @property
    def checksum(self) -> str:
        """Return one SHA-256 over the shards' checksums: equal exactly if the content is."""
        return hashlib.sha256(json.dumps(self.shards, sort_keys=True).encode()).hexdigest()


def write_shard(directory: Path, index: int, rows: Iterable[Response], settings: dict[str, Any]) -> Path:
    """Write one shard whole or not at all.

    Raises:
        OSError: the disk is full or can't be written.
        CacheError: a row can't be what a teacher gave, such as a log-probability that is not finite.
    """
    records = [_record(row) for row in rows]
    table = pa.Table.from_pylist(records, schema=SCHEMA.with_metadata({SETTINGS_KEY: _canonical(settings)}))
    path = directory / shard_name(index)
    ShardCheck(table, settings, path)
    with replacing(path) as handle:
        pq.write_table(table, handle, compression="zstd", write_page_checksum=True)
    return path


def _record(row: Response) -> dict[str, Any]:
    return {f.name: _plain(getattr(row, f.name)) for f in fields(row)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value if value.dtype == np.float16 else value.tolist()
    return value


def _canonical(settings: dict[str, Any]) -> bytes:
    return json.dumps(settings, sort_keys=True).encode()


def shard_is_done(directory: Path, index: int, settings: dict[str, Any]) -> bool:
    """Return whether a whole shard of these settings is there; it is read and checked as a reader of the cache would.

    Raises:
        CacheError: a shard is there but is damaged, or was made with other settings.
    """
    path = directory / shard_name(index)
    if not os.path.lexists(path):
        return False
    read_shard(path, settings)
    return True


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
    if (schema.metadata or {}).get(SETTINGS_KEY) != _canonical(settings):
        raise CacheError(f"{path} was made with other settings. Use another output_dir, or delete it.")
    most = len(settings["prompts"]) * MOST_ROWS_PER_PROMPT
    if not 1 <= file.metadata.num_rows <= most:
        raise CacheError(f"{path} claims {file.metadata.num_rows:,} responses to {len(settings['prompts'])} prompts. Delete it and run again.")


def finish_cache(directory: Path, settings: dict[str, Any], shards: int, version: str) -> Manifest:
    """Check, count and checksum the shards, and write the manifest: from here on the cache is complete.

    Raises:
        CacheError: a shard is damaged, is not the one that an earlier manifest names, or a response is missing.
    """
    names = [shard_name(i) for i in range(shards)]
    checksums = {n: file_sha256(directory / n) for n in names}
    if (directory / MANIFEST).is_file():  # a stage that was stopped after its cache was finished
        _check_shards(directory, read_manifest(directory), checksums)
    counts, rounding = _survey((read_shard(directory / n, settings) for n in names), settings, directory)
    manifest = Manifest(settings, counts, checksums, version, rounding)
    write_json(directory / MANIFEST, asdict(manifest))
    return manifest


def _survey(tables: Iterable[pa.Table], settings: dict[str, Any], directory: Path) -> tuple[dict[str, int], float]:
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


def read_manifest(directory: Path) -> Manifest:
    """Read a finished cache's manifest.

    Raises:
        CacheError: there is none, it is malformed, or it has another schema.
    """
    if not os.path.lexists(directory / MANIFEST):
        raise CacheError(f"{directory} holds no complete roll-out cache (no {MANIFEST}): run `tdistill rollout` first.")
    return Manifest(**read_manifest_file(directory / MANIFEST))


def open_cache(directory: Path, expect: dict[str, Any] | None = None, vocab_size: int | None = None) -> "tuple[Manifest, pa.Table]":
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
    _check_shards(directory, manifest, {n: file_sha256(directory / n) for n in manifest.shards if (directory / n).is_file()})
    tables = [read_shard(directory / n, manifest.settings, vocab_size) for n in manifest.shards]
    counts, rounding = _survey(tables, manifest.settings, directory)
    if manifest.counts != counts or manifest.candidate_logp_max_error != rounding:
        raise CacheError(f"{directory / MANIFEST} does not fit the shards' rows: {manifest.counts}, but they have {counts}. {ADVICE}")
    return manifest, pa.concat_tables(tables)


def _check_shards(directory: Path, manifest: Manifest, checksums: dict[str, str]) -> None:
    for name, checksum in manifest.shards.items():
        if name not in checksums:
            raise CacheError(f"{directory / name} is missing. Delete {MANIFEST} and run `tdistill rollout` again to restore it.")
        if checksums[name] != checksum:
            raise CacheError(f"{directory / name} was truncated or altered (checksum differs). Delete it and {MANIFEST}, and run again.")
