"""The wall for JSON and gzip: what is right is read as Python reads it, and all else is one error that says where."""

import gzip
import json
from pathlib import Path

import pytest

from tdistill.runtime.errors import DataError, shown
from tdistill.runtime.files import PARTIAL, read_json, remove_partial, replacing, write_json
from tdistill.runtime.parse import SMALL_BYTES, parse_json, read_maybe_gzip


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, "é", null, true]}', '"\\ud83d\\ude00"', '"😀"', "\ufeff[1]", "[1e308, -0.0]"])
def test_json_is_read_as_python_reads_it(text: str) -> None:
    assert parse_json(text.encode(), "x", DataError) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": \xff}', r"f, line 3: not UTF-8 \(byte 6 is 0xff\)"),
        (b'{"a": }', "not JSON: Expecting value at line 1, column 7"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5_000, "too many digits"),
        (b"[NaN]", "NaN is no JSON"),
        (b"[-Infinity]", "-Infinity is no JSON"),
        (b"[1e999]", "1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b'{"a": ["\\ud800"]}', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"),
        (b"", "not JSON"),
    ],
)
def test_what_python_takes_or_trips_over_is_one_error(text: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_json(text, "f, line 3", DataError)


def test_files_of_our_own_may_hold_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json", DataError)["loss"] != 0.0
    with pytest.raises(DataError, match=r"b\.json can't be read: No such file or directory\. Run again\."):
        read_json(tmp_path / "b.json", DataError, "Run again.")


def test_a_gzip_bomb_is_refused_and_text_is_not(tmp_path: Path) -> None:
    bomb, text = tmp_path / "bomb.gz", tmp_path / "text.gz"
    bomb.write_bytes(gzip.compress(b"a" * (SMALL_BYTES + 1)))
    text.write_bytes(gzip.compress(b"some text\n" * 1000))
    assert read_maybe_gzip(text, DataError) == b"some text\n" * 1000
    with pytest.raises(DataError, match="decompression bomb"):
        read_maybe_gzip(bomb, DataError)
    for damaged in (text.read_bytes()[:-4], b"no gzip", text.read_bytes()[:30] + b"\x00" * 30):
        (tmp_path / "d.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="can't be read"):
            read_maybe_gzip(tmp_path / "d.gz", DataError)


def test_a_temporary_file_follows_no_link_and_is_swept_up(tmp_path: Path) -> None:
    victim, goal = tmp_path / "victim", tmp_path / "goal"
    victim.write_text("mine")
    (tmp_path / f"goal{PARTIAL}").symlink_to(victim)
    with replacing(goal) as handle:
        handle.write(b"new")
    assert (victim.read_text(), goal.read_bytes()) == ("mine", b"new")
    (tmp_path / f"other.abc{PARTIAL}").write_text("left by a kill")
    remove_partial(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["goal", "victim"]


def test_a_long_or_hostile_message_is_bounded_and_visible() -> None:
    assert shown("fine: é") == "fine: é"
    assert len(shown("x" * 10**6)) < 2_200
    assert shown("a\x1b[31m\ud800") == "a␛[31m\ufffd"
