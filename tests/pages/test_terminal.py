import io
import re

import pytest
from report_data import report_data, systems
from rich.console import Console

from tdistill.pages.parts import Document, Notes, Section
from tdistill.pages.tables import Cell, Table
from tdistill.pages.terminal import print_document, print_table
from tdistill.report.data import Difference
from tdistill.report.sections import report_document
from tdistill.report.tables import comparison_table, quality_table
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width)


def printed(table: Table, width: int) -> str:
    out = console(width)
    print_table(out, table)
    return out.file.getvalue()


def test_the_terminal_shows_markup_and_escape_codes_as_text():
    shown = printed(Table("[red]c", ["[bold]x"], [[Cell("[link=y]z\x1b[31m")]], ["left"]), 60)
    assert "[red]c" in shown
    assert "[bold]x" in shown
    assert "[link=y]z␛[31m" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_every_number_stands_whole_on_one_line_within_the_width(width):
    table = quality_table(systems())
    lines = printed(table, width).splitlines()
    assert max(map(len, lines)) <= width
    for row in table.rows:
        for cell in row[1:]:
            assert any(re.search(rf"(^| ){re.escape(cell.text)} ", line) for line in lines), cell.text


def test_a_table_that_is_too_wide_is_split_and_every_part_names_its_rows():
    lines = printed(quality_table(systems()), 80).splitlines()
    assert sum(line.strip().startswith("parameters") for line in lines) == 2
    assert sum("Quality of every system" in line for line in lines) == 1
    assert sum(line.strip().startswith("parameters") for line in printed(quality_table(systems()), 120).splitlines()) == 1


def test_every_part_of_a_split_table_has_all_columns_that_name_its_rows():
    rows = [[Cell("one"), Cell(metric), Cell("0.123 ± 0.456"), Cell("0.789 ± 0.123")] for metric in ("first", "second")]
    shown = printed(Table("", ["method", "metric", "a", "b"], rows, ["left", "left", "right", "right"], labels=2), 40)
    assert sum(line.split() == ["method", "metric", name] for name in "ab" for line in shown.splitlines()) == 2
    assert all(re.search(rf"one +{metric} +{number}", shown) for metric in ("first", "second") for number in ("0.123 ±", "0.789 ±"))


def test_the_differences_of_pooled_students_fit_80_columns():
    value = Compared(Estimate(-0.521, 0.101, 100), -0.7, -0.3, 0.001, (3, 3), paired=True)
    table = comparison_table([Difference("distilled", "sft_continued", "student_mass", value)])
    assert sum("verdict" in line for line in printed(table, 80).splitlines()[:5]) == 1
    assert sum("metric" in line for line in printed(table, 80).splitlines()[:12]) == 1


def test_a_number_that_no_width_holds_is_folded_and_loses_no_digit():
    shown = printed(Table("", ["a", "n"], [[Cell("x"), Cell("1234567890" * 3)]], ["left", "right"]), 20)
    assert "".join(re.findall(r"\d+", shown)) == "1234567890" * 3


def test_a_document_shows_only_what_is_meant_for_the_terminal():
    out, tables = (
        console(80),
        [Table("c", ["h"], [[Cell(name)]], ["left"], terminal=shown) for name, shown in (("seen", True), ("hidden", False))],
    )
    notes = [Notes(["[b]told"], terminal=True), Notes(["untold"])]
    print_document(out, Document("t", {}, [Section("s", "s", [*tables, *notes, "a paragraph"])]))
    shown = out.file.getvalue()
    assert "seen" in shown
    assert "Note: [b]told\n" in shown
    assert not [text for text in ("hidden", "untold", "paragraph") if text in shown]


def test_the_terminal_shows_the_quality_and_the_differences_of_a_report():
    out = console(80)
    print_document(out, report_document(report_data()))
    shown = out.file.getvalue()
    assert "ROUGE-L ↑" in shown
    assert "no difference" in shown
    assert "peak memory" not in shown
