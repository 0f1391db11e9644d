"""Write a page of texts, tables and figures that is no run's report: ``NAME.md`` with its figures, and a self-contained ``NAME.html``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdistill.pages.page import figure_html, page_html, paragraph
from tdistill.pages.svg import Plot, plot_file
from tdistill.pages.tables import Table, to_html, to_markdown
from tdistill.pages.text import escape_markdown
from tdistill.report.render import bullets
from tdistill.runtime.files import write_text

Part = str | Plot | Table


@dataclass(frozen=True)
class Section:
    """Hold a heading and the parts below it, in order."""

    key: str
    title: str
    parts: Sequence[Part]


def write_document(out_dir: Path, name: str, title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> tuple[Path, Path]:
    """Write the page into ``out_dir``, each file in one step; return the paths of the Markdown and of the HTML."""
    figures = out_dir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for part in section.parts:
            if isinstance(part, Plot):
                write_text(figures / f"{part.key}.svg", plot_file(part))
    markdown, page = out_dir / f"{name}.md", out_dir / f"{name}.html"
    blocks = [f"# {title}", bullets(facts)]
    for section in sections:
        blocks += [f"## {section.title}", *map(_markdown, section.parts)]
    write_text(markdown, "\n\n".join(blocks) + "\n")
    write_text(page, page_html(title, facts, [(s.key, s.title, "\n".join(map(_html, s.parts))) for s in sections]))
    return markdown, page


def _markdown(part: Part) -> str:
    if isinstance(part, Plot):
        caption = escape_markdown(part.caption)
        return f"![{caption}](figures/{part.key}.svg)\n\n{caption}"
    return f"{escape_markdown(part.caption)}\n\n{to_markdown(part)}" if isinstance(part, Table) else escape_markdown(part)


def _html(part: Part) -> str:
    if isinstance(part, Plot):
        return figure_html(part)
    return to_html(part) if isinstance(part, Table) else paragraph(part)
