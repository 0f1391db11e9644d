from pathlib import Path

from tdistill.files import read_jsonl, write_jsonl


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\x85three\x0cfour"}, {"text": "five\nsix"}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows
