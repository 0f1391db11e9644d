import io

import pytest
from rich.console import Console

from tdistill.runtime import progress


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("title", "note"), [("sft_continued, seed 17: divergences", ""), ("train", "loss 3.145  eval_loss 4.271")])
def test_a_bar_stands_on_one_line_with_its_whole_title_count_and_note(width, title, note, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, width=width))
    with progress.bar(title, 12, "answers") as bar:
        bar.advance(12)
        bar.note(note)
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith(title)
    assert all(text in lines[0] for text in ("12/12", "0:00:00 left", note))
    assert "…" not in lines[0]
