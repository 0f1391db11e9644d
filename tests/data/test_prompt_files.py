"""The files that prompts are read from: formats, encodings, and what is none of them."""

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command

from tdistill.data.prompts import load_prompts
from tdistill.runtime.errors import DataError

TEXTS = ["one", "zwei – 漢字 😀", 'th"ree\\', "f\u2028our"]
LINES = "".join(json.dumps({"prompt": t, "completion": "a"}, ensure_ascii=False) + "\n" for t in TEXTS)
ARRAY = json.dumps([{"prompt": t, "completion": "a"} for t in TEXTS], indent=1)


def texts(path: Path) -> list[str]:
    return [prompt.text for prompt in load_prompts(str(path))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", LINES.encode()),
        ("p.JSONL", LINES.encode()),
        ("p.ndjson", LINES.encode()),
        ("p.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("p.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("p.jsonl", LINES.replace("\n", "\r").encode()),
        ("p.jsonl", LINES.replace("\n", "\n\n \t\n").strip().encode()),
        ("p.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("P.JSONL.GZ", gzip.compress(LINES.encode(), mtime=0)),
        ("p.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("p.json", LINES.encode()),
        ("p.json", ARRAY.encode()),
        ("p.json.gz", gzip.compress(ARRAY.encode(), mtime=0)),
    ],
)
def test_every_form_of_a_text_file_holds_the_same_prompts(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert texts(path) == TEXTS
    assert [p.references for p in load_prompts(str(path))] == [("a",)] * 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "holds no prompts"),
        ("p.jsonl", b"\n \n", "holds no prompts"),
        ("p.json", b"[]", "holds no prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": NaN}', "line 2: NaN is no JSON"),
        ("p.jsonl", b'{"prompt": "a", "n": 1' + b"0" * 5000 + b"}", "line 1: an integer with too many digits"),
        ("p.jsonl", b"[" * 100_000, "line 1: JSON nested too deeply"),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1: the key 'prompt' stands twice"),
        ("p.jsonl", b'{"prompt": "a\\ud800"}', "line 1: a text holds half of a surrogate pair"),
        ("p.jsonl", b'{"prompt": "a", "completion": "\\udfff"}', "line 1: a text holds half of a surrogate pair"),
        ("p.jsonl", b'{"prompt": "a\\u0000b"}', "line 1: `prompt` holds a NUL character"),
        ("p.jsonl", b'{"prompt": "a"}\n\x00\x00{"prompt": "b"}', "line 2: a NUL character"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', r"line 2: not UTF-8 \(byte 12 is 0xff\)"),
        ("p.jsonl", b'\xef\xbb\xbf{"prompt": "\xe9"}', r"line 1: not UTF-8 \(byte 12 is 0xe9\)"),
        ("p.jsonl", b'{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}', "line 2: not JSON: Unexpected UTF-8 BOM"),
        ("p.jsonl", LINES.encode("utf-16"), "UTF-16 text, not UTF-8"),
        ("p.jsonl", LINES.encode("utf-16-le"), "looks like UTF-16"),
        ("p.jsonl", LINES.encode("utf-32"), "UTF-32 text"),
        ("p.jsonl", gzip.compress(LINES.encode(), mtime=0), "gzip data .end its name with .gz"),
        ("p.jsonl", b"PAR1...", "a Parquet file"),
        ("p.jsonl.gz", LINES.encode(), "can't be read: Not a gzipped file"),
        ("p.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "can't be read"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "' + b"x" * (80 << 20) + b'"}', mtime=0), "decompression bomb"),
        ("p.jsonl", b'"text"', "line 1: expected an object, got str"),
        ("p.jsonl", b'{"prompt": "a"}\nnull', "line 2: expected an object, got NoneType"),
        ("p.jsonl", b'{"prompt": "a"}{"prompt": "b"}', "line 1: not JSON: Extra data .* one JSON object on every line"),
        ("p.jsonl", ARRAY.encode(), "line 1: not JSON"),
        ("p.jsonl", json.dumps([{"prompt": "a"}]).encode(), "line 1: expected an object, got a list. Give a JSON array .* as a .json file"),
        ("p.json", b'[{"prompt": "a"}, 3]', "element 2: expected an object, got int"),
        ("p.json", b'[{"prompt": "a"},\n{"prompt": }]', "not JSON: Expecting value at line 2, column 12"),
        ("p.json", b'{\n"data": [{"prompt": "a"}]\n}', "line 1: not JSON: .* one JSON object on every line"),
        ("p.csv", b"prompt,completion\na,b\n", r"p\.csv can't be read as prompts: tdistill reads JSON lines .* Convert it"),
        ("p.txt", b"a\nb\n", "can't be read as prompts"),
        ("p", b"a\nb\n", "can't be read as prompts"),
        ("p.parquet", b"", "p.parquet, after row 0: no readable Parquet file"),
        ("p.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "no readable Parquet file"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_says_where_and_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load_prompts(str(path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", "No prompt file at nowhere.jsonl"),
        ("nowhere.parquet", "No prompt file at nowhere.parquet"),
        ("nowhere.csv", "No prompt file at nowhere.csv"),
        ("data/nowhere/x.jsonl.gz", "No prompt file at"),
        ("dolly", "no such file is here, and a data set on the hub is named owner/name"),
        ("a/b/c", "a data set on the hub is named owner/name"),
        ("owner/", "a data set on the hub is named owner/name"),
        ("", "is a directory"),
        ("./x", "a data set on the hub is named owner/name"),
        ("owner/no-such-data-set:test", "Can't load 'owner/no-such-data-set:test' from the hub"),
        ("own er/na\x00me", "no prompts|No prompts|Can't load|can't be read as a path"),
        ("~nouser/x.jsonl", "can't be read as a path: Could not determine home directory"),
        ("x" * 5000 + ".jsonl", "can't be read as a path"),
        ("a\x00b.jsonl", "No prompt file|can't be read as a path"),
    ],
)
def test_a_source_that_is_not_there_says_what_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_prompts(source)


def test_a_directory_is_no_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").mkdir()
    for path in (tmp_path, tmp_path / "p.jsonl"):
        with pytest.raises(DataError, match="is a directory. Name one file in it"):
            load_prompts(str(path))


def test_the_same_prompt_twice_has_two_ids(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a", "completion": "b"}\n')
    first, second = load_prompts(str(path))
    assert second.prompt_id == f"{first.prompt_id}-2"


def parquet(tmp_path: Path, columns: Any) -> Path:
    path = tmp_path / "split=train" / "p.parquet"  # pyarrow's data sets would make a column of the directory
    path.parent.mkdir()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
STRUCTS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())]))


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": TEXTS},
        {"prompt": pa.array(TEXTS, pa.large_string())},
        {"prompt": pa.array(TEXTS, pa.string_view())},
        {"prompt": pa.array(TEXTS).dictionary_encode(), "extra": [b"\x00", None, b"", b"x"]},
        {"prompt": TEXTS, "messages": pa.nulls(4, STRUCTS), "completion": pa.nulls(4), "n": [Decimal("1.5")] * 4},
        {"messages": pa.array([[{"role": "user", "content": t}] for t in TEXTS], STRUCTS)},
    ],
)
def test_every_form_of_a_parquet_column_holds_the_same_prompts(tmp_path: Path, columns: Any) -> None:
    path = parquet(tmp_path, columns)
    assert texts(path) == TEXTS
    assert [p.where for p in load_prompts(str(path))] == [f"{path}, row {i}" for i in range(1, 5)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": pa.array([], pa.string())}, "holds no prompts"),
        ({"text": ["a"]}, r"row 1: no prompt.* got the keys \['text'\]"),
        ({"prompt": ["a", None]}, "row 2: no prompt"),
        ({"prompt": [b"a"]}, "row 1: `prompt` must be text, got bytes"),
        ({"prompt": [1]}, "row 1: `prompt` must be text, got int"),
        ({"prompt": [Decimal("1.5")]}, "row 1: `prompt` must be text, got Decimal"),
        ({"prompt": pa.array([1], pa.timestamp("s"))}, "row 1: `prompt` must be text, got datetime"),
        ({"messages": pa.array([[None]], STRUCTS)}, "row 1: messages must be objects"),
        ({"messages": pa.array([[{"role": "user", "content": None}]], STRUCTS)}, "row 1: `content` must be text, got NoneType"),
        ({"prompt": ["a"], "messages": pa.array([[{"role": "user", "content": "b"}]], STRUCTS)}, "row 1: `messages` and `prompt` are both"),
        (pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), "the column 'prompt' stands twice"),
        ({"prompt": NOT_UTF8}, "after row 0.*(UTF-?8|utf-?8)"),
    ],
)  # fmt: skip
def test_a_parquet_file_that_can_not_be_used_says_where_and_why(tmp_path: Path, columns: Any, message: str) -> None:
    path = parquet(tmp_path, columns)
    with pytest.raises(DataError, match=message):
        load_prompts(str(path))


def test_a_parquet_file_may_not_inflate_without_end(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"prompt": pa.array(["x" * (1 << 20)] * 80)})
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="inflates to more than 67,108,864"):
        load_prompts(str(path))


@pytest.mark.parametrize("source", ["~nouser/x.jsonl", "x" * 300 + ".jsonl", "p.csv"])
def test_the_command_line_says_so_too(tiny_recipe: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    assert command("rollout", tiny_recipe, f"data.train={source}") == 2
    assert "data.train" in capsys.readouterr().err or source == "p.csv"
