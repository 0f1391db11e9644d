"""Read prompt files and hub data sets as records, each with the place where it stands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdistill.runtime.errors import DataError
from tdistill.runtime.parse import MOST_INFLATED_BYTES, MOST_INFLATION, SMALL_BYTES, parse_json
from tdistill.runtime.paths import local_path
from tdistill.runtime.textfiles import inner_suffix, read_text

Records = Iterator[tuple[str, dict[str, Any]]]

FORMATS = "JSON lines (.jsonl, .jsonl.gz), a JSON array of objects (.json), Parquet (.parquet), or a data set on the hub (owner/name)"
NOT_READ = {".csv", ".tsv", ".txt", ".md", ".xlsx", ".arrow", ".yaml", ".yml", ".xml", ".zip", ".xz", ".zst", ".bz2", ".html"}
ROWS_AT_ONCE = 1024


def read_records(source: str) -> Records:
    """Read the records of a file or of a data set on the hub.

    Args:
        source: a path, ``owner/name`` or ``owner/name:split``.

    Returns:
        Pairs of a place (file and line, row or element, counted from 1) and the record there.

    Raises:
        DataError: nothing is there, or it can't be read; the place is named.
    """
    path = local_path(source)
    if path.is_dir():
        raise DataError(f"{path} is a directory. Name one file in it: {FORMATS}.")
    suffix = inner_suffix(path)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(_existing(path))
    if suffix == ".json":
        return _read_json(_existing(path))
    if suffix in {".jsonl", ".ndjson"} or path.suffix.lower() == ".gz":
        return _read_jsonl(_existing(path), read_text(_existing(path)))
    if path.exists() or suffix in NOT_READ:
        raise DataError(f"{_existing(path)} can't be read as prompts: tdistill reads {FORMATS}. Convert it to JSON lines.")
    return _read_hub(source)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"No prompt file at {path}.")
    return path


def _read_jsonl(path: Path, text: str) -> Records:
    # A line break is never part of a JSON text. Other separators (U+2028, form feed) are: splitlines would cut there.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            advice = "A file of JSON lines has one JSON object on every line."
            yield where, _object(where, parse_json(line, where, DataError, advice=advice), "")


def _read_json(path: Path) -> Records:
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from _read_jsonl(path, text)
        return
    rows = parse_json(text, str(path), DataError, advice="Give a JSON array of objects, or one object on every line.")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, element {number}"
        yield where, _object(where, row, "")


def _object(where: str, record: Any, advice: str) -> dict[str, Any]:
    if isinstance(record, list):
        raise DataError(f"{where}: expected an object, got a list. Give a JSON array of objects as a .json file, or an object on every line.")
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object, got {type(record).__name__}. {advice}".strip())
    return record


def _read_parquet(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = min(MOST_INFLATED_BYTES, max(SMALL_BYTES, MOST_INFLATION * path.stat().st_size))
    row, size = 0, 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise DataError(f"{path}: the column {twice!r} stands twice.")
            for batch in file.iter_batches(ROWS_AT_ONCE):
                batch.validate(full=True)
                size += batch.nbytes
                if size > limit:
                    raise DataError(f"{path} has {path.stat().st_size:,} bytes and inflates to more than {limit:,}: give it as JSON lines.")
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except UnicodeDecodeError:
        raise DataError(f"{path}, after row {row}: a text is not UTF-8. The file is damaged; write it again.") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}, after row {row}: no readable Parquet file: {error}") from error


def _read_hub(source: str) -> Records:
    import datasets
    import pyarrow as pa

    name, _, split = source.partition(":")
    owner, _, rest = name.partition("/")
    if not owner or not rest or "/" in rest or name.startswith((".", "~")):
        raise DataError(f"No prompts at {source!r}: no such file is here, and a data set on the hub is named owner/name. Give {FORMATS}.")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
        for number, row in enumerate(rows, start=1):
            yield f"{source}, row {number}", dict(row)
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise DataError(f"Can't load {source!r} from the hub ({type(error).__name__}: {error}), and no such file is here.") from error
