from pathlib import Path

from tdistill.runtime.files import read_jsonl, write_jsonl


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\x85three\x0cfour"}, {"text": "five\nsix"}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows


def test_compressed_lines_are_the_same_bytes_on_every_run(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"b": "é"}]
    for name in ("x.jsonl.xz", "y.jsonl.xz"):
        write_jsonl(tmp_path / name, rows)
    assert read_jsonl(tmp_path / "x.jsonl.xz") == rows
    assert (tmp_path / "x.jsonl.xz").read_bytes() == (tmp_path / "y.jsonl.xz").read_bytes()
