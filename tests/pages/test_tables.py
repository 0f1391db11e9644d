import io
import math

import pytest
import rich.console
from report_data import ATTACK, comparisons, sparsity, stages, systems

from tdistill.pages.tables import (
    Cell,
    Table,
    format_bytes,
    format_count,
    format_estimate,
    format_number,
    format_seconds,
    to_html,
    to_markdown,
    to_rich,
)
from tdistill.pages.text import escape_markdown, visible
from tdistill.report.data import Comparison, Sparsity, System
from tdistill.report.tables import best_students, comparison_table, quality_table, sparsity_table, stages_table, verdict
from tdistill.statistics.estimate import Estimate

NAN = float("nan")


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


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


def test_quality_has_a_row_a_system_and_a_column_a_metric():
    table = quality_table(systems())
    assert table.header[:5] == ["system", "parameters", "layers", "ROUGE-L ↑", "teacher NLL ↓"]
    assert table.header[-2:] == ["distinct-2", "length"]
    assert texts(table)[0] == [
        "teacher",
        "135M",
        "30",
        "26.3 ± 0.5",
        "0.710 ± 0.014",
        "–",
        "–",
        "–",
        "0.860 ± 0.017",
        "92.5 ± 1.9",
    ]
    assert {len(row) for row in table.rows} == {len(table.header)} == {len(table.align)}


def test_only_the_best_student_is_strong_and_only_where_a_direction_is_better():
    table = quality_table(systems())
    strong = {(row[0].text, table.header[i]) for row in table.rows for i, cell in enumerate(row) if cell.strong}
    columns = ("ROUGE-L ↑", "teacher NLL ↓", "forward KL ↓", "reverse KL ↓", "mass on A_p ↑")
    assert strong == {("distilled", column) for column in columns}  # the teacher is better in two of them


def test_a_single_student_is_best_of_nothing_and_ties_are_all_best():
    def of(name: str, mean: float) -> System:
        return System(name, "", 1, 1, {"rouge_l": Estimate(mean, 1.0, 4)})

    assert best_students([of("teacher", 30.0), of("a", 20.0)], "rouge_l") == set()
    assert best_students([of("a", 20.0), of("b", 20.0), of("c", NAN)], "rouge_l") == {"a", "b"}


def test_metrics_that_nobody_has_get_no_column():
    table = quality_table([System("teacher", "", 1, 1, {"rouge_l": Estimate(1.0, 0.1, 4), "mean_length": Estimate(NAN, NAN, 0)})])
    assert table.header == ["system", "parameters", "layers", "ROUGE-L ↑"]


@pytest.mark.parametrize(
    ("metric", "mean", "stderr", "expected"),
    [
        ("rouge_l", 2.1, 1.0, "better"),
        ("rouge_l", -2.1, 1.0, "worse"),
        ("forward_kl", -2.1, 1.0, "better"),
        ("forward_kl", 2.1, 1.0, "worse"),
        ("forward_kl", 2.0, 1.0, "no difference"),
        ("forward_kl", 0.0, 0.0, "no difference"),
        ("distinct_2", 2.1, 1.0, "higher"),
        ("distinct_2", -2.1, 1.0, "lower"),
        ("unheard_of", -2.1, 1.0, "lower"),
        ("rouge_l", 2.1, NAN, "–"),
        ("rouge_l", NAN, 1.0, "–"),
    ],
)
def test_the_verdict_follows_the_metric_s_direction_at_two_standard_errors(metric, mean, stderr, expected):
    assert verdict(Comparison("a", "b", metric, Estimate(mean, stderr, 10))).text == expected


def test_comparisons_state_difference_prompts_and_verdict():
    rows = texts(comparison_table(comparisons()))
    assert rows[0] == ["distilled − sft", "ROUGE-L ↑", "+3.3 ± 0.8", "160", "better"]
    assert rows[1] == ["distilled − sft", "forward KL ↓", "−0.399 ± 0.021", "160", "better"]
    assert [row[-1] for row in rows] == ["better", "better", "lower", "better", "no difference", "worse"]


def test_sparsity_quantiles_are_sizes_that_occur():
    table = sparsity_table(Sparsity(4, 100, {}, {0.9: [1, 1, 2, 50], 0.5: [1, 1, 1, 1], 0.8: []}))
    assert texts(table) == [["0.5", "1.0", "1", "1", "1", "1"], ["0.9", "13.5", "1", "50", "50", "50"]]
    assert len(sparsity_table(sparsity()).rows) == 3


def test_stages_end_with_their_total():
    table = stages_table(stages())
    assert [cell.text for cell in table.rows[-1]] == ["total", "2 h 32 min", "449.8 MiB", "3.9 GiB", ""]
    assert all(cell.strong for cell in table.rows[-1])


HOSTILE = Table(f"caption {ATTACK}", ["a|b", "n"], [[Cell(ATTACK, strong=True), Cell("1 | 2\n3", tone="bad")]], ["left", "right"])


def test_markdown_keeps_one_row_a_line_and_takes_text_literally():
    lines = to_markdown(HOSTILE).splitlines()
    assert lines[:2] == [r"| a\|b | n |", "| :--- | ---: |"]
    assert len(lines) == 3
    assert "<" not in lines[2]
    assert lines[2].endswith(r"| 1 \| 2 3 |")
    assert escape_markdown("*a* [b](c) snake_case _d_ `e`") == r"\*a\* \[b\](c) snake_case \_d\_ \`e\`"


def test_html_escapes_every_text():
    page = to_html(HOSTILE)
    assert "<script" not in page
    assert "<img" not in page
    assert '<th scope="row" class="left"><strong>&lt;script&gt;' in page
    assert '<td class="right bad">' in page


def test_the_terminal_shows_markup_and_escape_codes_as_text():
    table = Table("[red]c", ["[bold]x"], [[Cell("[link=y]z\x1b[31m")]], ["left"])
    console = rich.console.Console(file=io.StringIO(), width=60)
    console.print(to_rich(table))
    shown = console.file.getvalue()
    assert "[bold]x" in shown
    assert "[link=y]z␛[31m" in shown
    assert "\x1b" not in shown


def test_the_terminal_loses_no_digit_of_a_wide_table():
    console = rich.console.Console(file=io.StringIO(), width=100)
    console.print(to_rich(quality_table(systems())))
    shown = console.file.getvalue()
    assert "0.1120 ± 0.0022" in shown
    assert "…" not in shown


def test_control_characters_and_direction_overrides_are_made_visible():
    assert visible("a\r\nb\tc\x00\x1b\x7f\u202e\ud800") == "a\nb\tc␀␛\ufffd\ufffd\ufffd"
