import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_data import ATTACK, bare_data, report_data, seeded_data, systems

from tdistill.pages.html import html_page
from tdistill.pages.markdown import markdown_page
from tdistill.report.data import ReportData
from tdistill.report.sections import report_document, seed_notes, write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADING = {"src", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Checks nesting while it parses, and gathers what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"repeated attribute in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def headings(self) -> list[str]:
        return [tag for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]

    def sections(self) -> list[str | None]:
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


@pytest.fixture(scope="module")
def data() -> ReportData:
    return report_data()


@pytest.fixture(scope="module")
def out_dir(data, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("report") / "new" / "folder"
    assert write_report(data, out_dir) == (out_dir / "report.md", out_dir / "report.html")
    return out_dir


@pytest.fixture(scope="module")
def html_text(out_dir):
    return (out_dir / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(html_text):
    return Page(html_text)


@pytest.fixture(scope="module")
def markdown(out_dir):
    return (out_dir / "report.md").read_text("utf-8")


def test_the_page_has_its_sections_in_order_and_links_to_each(page):
    assert page.sections() == ["quality", "comparisons", "training", "sparsity", "cost", "samples", "recipe"]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{section}" for section in page.sections()]


def test_the_page_states_language_viewport_and_captions(page):
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attrs.get("name") == "viewport" for tag, attrs in page.tags)
    assert tags.count("caption") == tags.count("table") == 4
    assert page.headings()[0] == "h1"
    assert all(b <= a or int(b[1]) == int(a[1]) + 1 for a, b in zip(page.headings(), page.headings()[1:], strict=False))
    figures = [attrs for tag, attrs in page.tags if tag == "svg" and "aria-hidden" not in attrs]
    assert len(figures) == 5 + 9 + 4 + 1
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)


def test_ids_are_unique_and_references_meet_one(page, html_text):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^)"]+)', html_text)
    assert set(targets) <= set(ids)


def test_the_page_loads_nothing(page, html_text):
    for tag, attrs in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base"}
        assert not LOADING & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "xlink:href"):
            assert name not in attrs or attrs[name].startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", html_text)
    assert "default-src 'none'" in html_text
    outside = set(re.findall(r"https?://[^\s\"'<]+", html_text)) - {"https://evil.example/x.png"}
    assert all(address.startswith("http://www.w3.org/") for address in outside)  # namespaces


def test_hostile_answers_and_prompts_are_shown_as_they_are(page, html_text):
    assert page.text.count(ATTACK) == 2  # prompt and answer
    assert "<script" not in html_text
    assert "\x00" not in html_text
    assert "␛[31mred␀ \ufffdgnp.exe" in page.text
    assert "Roses are red,\n    violets are blue,\n\tindented by a tab." in page.text
    assert "x" * 700 in page.text
    assert "(empty)" in page.text


def test_every_other_text_is_escaped_too(data):
    evil = ReportData(
        title=ATTACK,
        facts={ATTACK: ATTACK},
        protocol=ATTACK,
        systems=[replace(s, name=f"{s.name}{ATTACK}", description=ATTACK) for s in data.systems],
        differences=[replace(d, a=ATTACK, metric=ATTACK) for d in data.differences],
        curves=[replace(c, name=f"{c.name}{ATTACK}", records=[{"step": 1.0, "loss": 1.0}]) for c in data.curves],
        sparsity=None,
        stages=[replace(s, name=ATTACK) for s in data.stages],
        samples=[replace(s, answers={ATTACK: ATTACK}) for s in data.samples],
        recipe_yaml=ATTACK,
        notes=[ATTACK],
    )
    document = report_document(evil)
    for tag, attrs in Page(html_page(document)).tags:
        assert tag not in {"script", "img"}
        assert "onerror" not in attrs
    assert "<script" not in re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", markdown_page(document))


def test_markdown_refers_to_the_figures_it_wrote(markdown, out_dir):
    assert re.findall(r"\]\((figures/\w+\.svg)\)", markdown) == [f"figures/{key}.svg" for key in ("quality", "curves", "sparsity", "time")]
    assert sorted(path.name for path in (out_dir / "figures").iterdir()) == [
        "curves.svg",
        "quality.svg",
        "sparsity.svg",
        "time.svg",
    ]
    assert "| distilled − sft | ROUGE-L ↑ | +3.3 ± 0.8 | 160 | better |" in markdown
    assert "| **21.7 ± 0.4** |" in markdown


def test_markdown_fences_hold_whatever_an_answer_holds(markdown):
    assert "````\nRoses are red," in markdown
    outside = re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", markdown)
    assert "<script" not in outside
    assert "evil.example" not in outside
    assert "<details>" in outside


def test_the_recipe_and_notes_are_there(page, markdown):
    assert "  alpha: 10.0  # nats" in page.text
    assert "ROUGE-L rewards <length> as well." in page.text
    assert "ROUGE-L rewards &lt;length&gt; as well." in markdown


def test_writing_again_gives_the_same_bytes_and_leaves_nothing_behind(data, out_dir, tmp_path):
    write_report(data, tmp_path)
    names = [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert len(names) == 6
    for name in names:
        assert (tmp_path / name).read_bytes() == (out_dir / name).read_bytes(), name


def test_bare_data_leaves_sections_out_and_removes_old_figures(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curves.svg").write_text("old")
    (tmp_path / "figures" / "mine.svg").write_text("kept")
    markdown, html_path = write_report(bare_data(), tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.svg"]
    page = Page(html_path.read_text("utf-8"))
    assert page.sections() == ["quality"]
    assert "nan" not in page.text.lower()
    assert re.findall("^## (.*)$", markdown.read_text("utf-8"), re.MULTILINE) == ["Quality"]


def test_a_failed_write_keeps_the_report_that_was_there(data, tmp_path, monkeypatch):
    _, page = write_report(bare_data(), tmp_path)
    before = page.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(bare_data(), tmp_path)
    assert page.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_note_on_seeds_says_what_the_errors_cover():
    assert seed_notes(systems()) == []
    one, few, five = ([replace(s, seeds=seeds) for s in systems()] for seeds in ((17,), (17, 18), (1, 2, 3, 4, 5)))
    assert seed_notes(one) == ["One training seed: ± is over prompts only; add train.seeds to measure the spread over seeds."]
    assert seed_notes(few) == [
        "Pooled over 2 training seeds (17, 18): ± is over seeds and prompts. Fewer than five seeds give rough standard errors."
    ]
    assert seed_notes(five) == ["Pooled over 5 training seeds (1, 2, 3, 4, 5): ± is over seeds and prompts."]


def test_pooled_students_have_a_column_of_seeds_p_values_and_the_first_seed_s_answers():
    markdown = markdown_page(report_document(seeded_data()))
    assert "| system | seeds | parameters |" in markdown
    assert "| teacher | – | 135M |" in markdown
    assert "| distilled | 3 | 63.7M |" in markdown
    assert "| distilled − sft | ROUGE-L ↑ | +3.3 ± 0.8 | &lt; 0.001 | 3 × 160 | better |" in markdown
    assert "The students' answers are those of the first training seed, 17." in markdown
    assert "- **Note:** Pooled over 3 training seeds (17, 18, 19)" in markdown


def test_one_seed_has_neither_a_column_of_seeds_nor_a_sentence_on_the_samples(markdown):
    assert "| system | parameters | layers |" in markdown
    assert "training seed" not in markdown
