"""The roll-out cache: Parquet shards, one response a row, and a manifest written last.

A shard gets its name only when it is whole (temporary file, fsync, rename), and carries the settings it was made with. So a
killed run keeps every finished shard, and what has no name does not count.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tdistill.errors import CacheError
from tdistill.files import replacing, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
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
    """One row. Arrays are per token; ``candidate_*`` are concatenated over tokens by ``candidate_count``."""

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
    """What a finished cache says of itself. ``settings`` is all that shaped its content."""

    settings: dict[str, Any]
    counts: dict[str, int]
    shards: dict[str, str]  # file → SHA-256
    tdistill_version: str
    candidate_logp_max_error: float  # nats: half the spacing of float16 at the least probable candidate
    schema_version: int = SCHEMA_VERSION

    @property
    def teacher_top_p(self) -> float:
        """The p the cache was made with: it serves every p up to it."""
        return float(self.settings["teacher_top_p"])

    @property
    def checksum(self) -> str:
        """One SHA-256 over the shards' checksums: equal exactly if the content is."""
        return hashlib.sha256(json.dumps(self.shards, sort_keys=True).encode()).hexdigest()


def shard_name(index: int) -> str:
    """File name of the index-th shard."""
    return f"shard-{index:05d}.parquet"


def write_shard(directory: Path, index: int, rows: Iterable[Response], settings: dict[str, Any]) -> Path:
    """Write one shard whole or not at all.

    Raises:
        OSError: the disk is full or can't be written.
    """
    records = [_record(row) for row in rows]
    table = pa.Table.from_pylist(records, schema=SCHEMA.with_metadata({SETTINGS_KEY: _canonical(settings)}))
    path = directory / shard_name(index)
    with replacing(path) as handle:
        pq.write_table(table, handle, compression="zstd")
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
    """A whole shard of these settings is there.

    Raises:
        CacheError: a shard is there but is damaged, or was made with other settings.
    """
    path = directory / shard_name(index)
    if not path.exists():
        return False
    try:
        stored = pq.read_schema(path).metadata.get(SETTINGS_KEY)
    except (pa.ArrowInvalid, OSError) as error:
        raise CacheError(f"{path} is truncated or damaged ({error}). Delete it and run again.") from error
    if stored != _canonical(settings):
        raise CacheError(f"{path} was made with other settings. Use another output_dir, or delete it.")
    return True


def finish_cache(directory: Path, settings: dict[str, Any], shards: int, version: str) -> Manifest:
    """Count and checksum the shards, and write the manifest: from here on the cache is complete."""
    names = [shard_name(i) for i in range(shards)]
    columns = pq.read_table([directory / n for n in names], columns=["finished", "candidate_count", "candidate_logp"])
    per_row = [np.asarray(c) for c in columns["candidate_count"].to_pylist()]
    manifest = Manifest(
        settings=settings,
        counts={
            "responses": len(columns),
            "finished": int(np.sum(columns["finished"].to_pylist())),
            "tokens": int(sum(len(c) for c in per_row)),
            "candidates": int(sum(c.sum() for c in per_row)),
        },
        shards={n: _sha256(directory / n) for n in names},
        tdistill_version=version,
        candidate_logp_max_error=_float16_error(min(c.values.to_numpy().min() for c in columns["candidate_logp"].chunks)),
    )
    write_json(directory / MANIFEST, asdict(manifest))
    return manifest


def _float16_error(logp: float) -> float:
    return float(np.spacing(np.float16(abs(logp)))) / 2.0


def open_cache(directory: Path, expect: dict[str, Any] | None = None, verify: bool = True) -> "tuple[Manifest, pa.Table]":
    """The manifest and all rows.

    Args:
        directory: where the shards lie.
        expect: settings that must be those of the cache, such as ``teacher``, ``tokenizer`` and ``template`` fingerprints.
        verify: compare every shard's checksum.

    Raises:
        CacheError: not complete, damaged, of another schema, or of another teacher, tokenizer or template.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise CacheError(f"{directory} holds no complete roll-out cache (no {MANIFEST}): run `tdistill rollout` first.")
    manifest = Manifest(**json.loads(path.read_text()))
    if manifest.schema_version != SCHEMA_VERSION:
        raise CacheError(f"{directory} has cache schema {manifest.schema_version}; this tdistill reads {SCHEMA_VERSION}.")
    for key, value in (expect or {}).items():
        if manifest.settings.get(key) != value:
            raise CacheError(
                f"The cache {directory} was made with another {key}: it has {manifest.settings.get(key)!r}, this run {value!r}. "
                "Roll out again, or point the recipe at the cache's own."
            )
    for name, checksum in manifest.shards.items():
        if not (directory / name).is_file():
            raise CacheError(f"{directory / name} is missing. Delete {MANIFEST} and run `tdistill rollout` again to restore it.")
        if verify and _sha256(directory / name) != checksum:
            raise CacheError(f"{directory / name} was truncated or altered (checksum differs). Delete it and {MANIFEST}, and run again.")
    return manifest, pq.read_table([directory / n for n in manifest.shards])


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
