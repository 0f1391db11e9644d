import math

import pytest
from report_data import ATTACK

from tdistill.pages.html import html_page
from tdistill.pages.markdown import to_markdown
from tdistill.pages.parts import Document, Section
from tdistill.pages.tables import Cell, Table, format_bytes, format_count, format_estimate, format_number, format_seconds
from tdistill.pages.text import escape_markdown, visible
from tdistill.statistics.estimate import Estimate

NAN = float("nan")


@pytest.mark.parametrize(
    ("mean", "stderr", "expected"),
    [
        (23.4567, 0.4321, "23.5 ± 0.4"),
        (23.4567, 0.1321, "23.46 ± 0.13"),
        (-0.39931, 0.0213, "−0.399 ± 0.021"),
        (1234.5, 150.0, "1,234 ± 150"),
        (0.0, 0.0, "0.00 ± 0.00"),
        (-0.0001, 0.2, "0.00 ± 0.20"),
        (26.31, NAN, "26.3"),
        (0.01234, NAN, "0.0123"),
        (NAN, 0.1, "–"),
        (math.inf, 0.1, "–"),
    ],
)
def test_an_estimate_shows_the_digits_that_its_standard_error_supports(mean, stderr, expected):
    assert format_estimate(Estimate(mean, stderr, 10)) == expected


def test_a_missing_estimate_is_an_en_dash():
    assert format_estimate(None) == "–"


def test_numbers_sizes_and_durations():
    assert [format_count(n) for n in (512, 63_714_240, 134_515_008, 1_240_000_000)] == ["512", "63.7M", "135M", "1.24B"]
    assert [format_bytes(n) for n in (0, 1023, 1024, 127_000_000, 4_200_000_000)] == [
        "–",
        "1023 B",
        "1.0 KiB",
        "121.1 MiB",
        "3.9 GiB",
    ]
    assert [format_seconds(s) for s in (3.21, 59.99, 65, 3599.9, 7512, NAN)] == [
        "3.2 s",
        "1 min 00 s",
        "1 min 05 s",
        "1 h 00 min",
        "2 h 05 min",
        "–",
    ]
    assert format_number(-1234.5678) == "−1,235"


HOSTILE = Table(f"caption {ATTACK}", ["a|b", "n"], [[Cell(ATTACK, strong=True), Cell("1 | 2\n3", tone="bad")]], ["left", "right"])


def test_markdown_keeps_one_row_a_line_and_takes_text_literally():
    lines = to_markdown(HOSTILE).splitlines()
    assert lines[:2] == [r"| a\|b | n |", "| :--- | ---: |"]
    assert len(lines) == 3
    assert "<" not in lines[2]
    assert lines[2].endswith(r"| 1 \| 2 3 |")
    assert escape_markdown("*a* [b](c) snake_case _d_ `e`") == r"\*a\* \[b\](c) snake_case \_d\_ \`e\`"


def test_html_escapes_every_text():
    page = html_page(Document("t", {}, [Section("s", "s", [HOSTILE])]))
    assert "<script" not in page
    assert "<img" not in page
    assert '<th scope="row" class="left"><strong>&lt;script&gt;' in page
    assert '<td class="right bad">' in page


def test_control_characters_and_direction_overrides_are_made_visible():
    assert visible("a\r\nb\tc\x00\x1b\x7f\u202e\ud800") == "a\nb\tc␀␛\ufffd\ufffd\ufffd"
