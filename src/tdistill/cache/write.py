"""Write roll-out caches: Parquet shards, one response in a row, and a manifest written last.

A shard gets its name only when it is whole (temporary file, fsync, rename), and carries the settings it was made with. So a
killed run keeps every finished shard, and what has no name does not count.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import tdistill
from tdistill.cache.check import ShardCheck
from tdistill.cache.read import check_shards, read_manifest, read_shard, survey
from tdistill.cache.schema import MANIFEST, SCHEMA, SETTINGS_KEY, CacheManifest, canonical, content_settings, shard_name
from tdistill.runtime.files import replacing, sync_directory, write_json
from tdistill.runtime.hashes import file_sha256


def write_shard(directory: Path, index: int, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Write one shard whole or not at all.

    Args:
        directory: the cache's directory.
        index: number of the shard.
        rows: from ``schema.to_row``.
        settings: all that shaped the content; it is stored in the shard.

    Raises:
        OSError: the disk is full or can't be written.
        CacheError: a row can't be what a teacher gave, such as a log-probability that is not finite.
    """
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({SETTINGS_KEY: canonical(settings)}))
    path = directory / shard_name(index)
    ShardCheck(table, settings, path)
    with replacing(path) as handle:
        pq.write_table(table, handle, compression="zstd", write_page_checksum=True)
    return path


def free_numbers(directory: Path, taken: Collection[int], count: int) -> list[int]:
    """Return the numbers of ``count`` shards that are still to be written, so that all shards are numbered from 0 without a gap.

    Where fewer shards will follow than there are gaps, the last shards take the numbers of the first gaps.
    """
    total = len(taken) + count
    free = [i for i in range(total) if i not in taken]
    for number in sorted(i for i in taken if i >= total):
        (directory / shard_name(number)).rename(directory / shard_name(free.pop(0)))
        sync_directory(directory)
    return free


def finish_cache(directory: Path, settings: dict[str, Any], shards: int, plan: dict[str, int] | None = None) -> CacheManifest:
    """Check, count and checksum the shards, and write the manifest: from here on the cache is complete.

    A manifest that is there already and fits is left as it is.

    Args:
        directory: the cache's directory.
        settings: all that shaped the content.
        shards: how many there are.
        plan: batch sizes, for the manifest to note.

    Raises:
        CacheError: a shard is damaged, is not the one that an earlier manifest names, or a response is missing.
    """
    names = [shard_name(i) for i in range(shards)]
    checksums = {n: file_sha256(directory / n) for n in names}
    earlier = read_manifest(directory) if (directory / MANIFEST).is_file() else None  # of a stage that was stopped after its cache
    if earlier is not None:
        check_shards(directory, earlier, checksums)
    counts, rounding = survey((read_shard(directory / n, settings) for n in names), settings, directory)
    made = CacheManifest(content_settings(settings), counts, checksums, tdistill.__version__, rounding, plan=plan)
    if earlier is not None and canonical(earlier.settings) == canonical(settings):
        same = replace(made, settings=earlier.settings, tdistill_version=earlier.tdistill_version, plan=earlier.plan)
        if same == earlier:
            return earlier
    write_json(directory / MANIFEST, asdict(made))
    return made
