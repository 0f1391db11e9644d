from typing import get_args

import pytest
from report_data import ATTACK

from tdistill.pages.document import write_document
from tdistill.pages.html import html_page
from tdistill.pages.markdown import markdown_page
from tdistill.pages.parts import Details, Document, Notes, Part, Sample, Samples, Section, Terms
from tdistill.pages.svg import Line, Panel, Plot
from tdistill.pages.tables import Cell, Table

PLOT = Plot("drawn", ATTACK, [Panel(ATTACK, lambda ax: ax.set_title(ATTACK))], 1, legend=[Line(ATTACK, "#000000", ":")])
PARTS: dict[str, Part] = {
    "paragraph": ATTACK,
    "table": Table(ATTACK, [ATTACK], [[Cell(ATTACK, strong=True)]], ["left"]),
    "plot": PLOT,
    "terms": Terms({ATTACK: ATTACK}, {ATTACK: "#000000"}),
    "notes": Notes([ATTACK]),
    "samples": Samples([Sample(ATTACK, {ATTACK: ATTACK})], {}),
    "details": Details(ATTACK, ATTACK, "yaml"),
}


def page(*parts: Part) -> Document:
    return Document("title", {"fact": "value"}, [Section("key", "heading", parts)])


def test_every_kind_of_part_is_tried_here():
    assert {type(part) for part in PARTS.values()} == set(get_args(Part))


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_of_part_shows_its_text_and_escapes_it(kind):
    html = html_page(page(PARTS[kind]))
    assert "&lt;script&gt;alert(" in html
    assert "<script" not in html
    assert "<img" not in html
    markdown = markdown_page(page(PARTS[kind]))
    assert "alert('x')" in markdown
    fences = [i for i, line in enumerate(markdown.splitlines()) if line.startswith("```")]
    raw = [i for i, line in enumerate(markdown.splitlines()) if "<script" in line]
    assert all(sum(fence < i for fence in fences) % 2 == 1 for i in raw), "only a code block holds it as it is"


@pytest.mark.parametrize(
    ("note", "html", "markdown"),
    [
        ("run `a_b <c>` first", "<li>run <code>a_b &lt;c&gt;</code> first</li>", "- **Note:** run `a_b <c>` first\n"),
        ("`a` and `b`", "<li><code>a</code> and <code>b</code></li>", "- **Note:** `a` and `b`\n"),
        ("a ` alone", "<li>a ` alone</li>", "- **Note:** a \\` alone\n"),
    ],
)
def test_text_between_backticks_of_a_note_is_code(note, html, markdown):
    assert html in html_page(page(Notes([note])))
    assert markdown in markdown_page(page(Notes([note])))


def test_control_characters_are_shown_as_text_in_html():
    assert "a␛[31mb" in html_page(page("a\x1b[31mb"))


def test_a_section_without_parts_is_left_out_of_page_and_links():
    document = Document("title", {}, [Section("empty", "nothing here", []), Section("full", "something here", ["text"])])
    for text in (html_page(document), markdown_page(document)):
        assert "nothing here" not in text
        assert "something here" in text


def test_figures_of_an_earlier_page_go_and_other_files_stay(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("old", "mine"):
        (tmp_path / "figures" / f"{name}.svg").write_text("there")
    written = write_document(tmp_path, "page", page(PLOT), figures=("drawn", "old"))
    assert written == (tmp_path / "page.md", tmp_path / "page.html")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"drawn.svg", "mine.svg"}
    assert "](figures/drawn.svg)" in (tmp_path / "page.md").read_text()
    assert '<figure id="figure-drawn">' in (tmp_path / "page.html").read_text()
