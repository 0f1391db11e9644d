"""Check the documentation: its links, its index, the size of its tables and of its results page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)")


def prose(page: Path) -> str:
    """The page without its code, where brackets are no links."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, hyphens for blanks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)}


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_index_has_every_page_of_an_objective():
    linked = set(links(ROOT / "docs/index.md"))
    assert linked >= {f"algorithms/{page.name}" for page in (ROOT / "docs/algorithms").glob("*.md")}


def test_the_results_page_has_at_most_1500_words():
    assert len((ROOT / "docs/results.md").read_text(encoding="utf-8").split()) <= 1500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_has_more_than_six_columns(page):
    rows = [re.sub(r"`[^`]*`|\\\|", "", line) for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert not [row for row in rows if row.count("|") > 7]


def test_no_page_has_footnote_marks():
    assert not [page for page in PAGES if "†" in page.read_text(encoding="utf-8")]
