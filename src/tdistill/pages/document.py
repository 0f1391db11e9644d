"""Write a document: ``NAME.md`` with its figures beside it, and a self-contained ``NAME.html``."""

from collections.abc import Collection
from pathlib import Path

from tdistill.pages.html import html_page
from tdistill.pages.markdown import markdown_page
from tdistill.pages.parts import Document
from tdistill.pages.svg import plot_file
from tdistill.runtime.files import write_text


def write_document(out_dir: Path, name: str, document: Document, figures: Collection[str] = ()) -> tuple[Path, Path]:
    """Write the document into ``out_dir``; return the paths of the Markdown and of the HTML.

    Each file is replaced in one step, so that a reader never sees half of one. The same document gives the same bytes.

    Args:
        out_dir: the directory, which is made if it is missing.
        name: the name of both pages, without suffix.
        document: what they show.
        figures: keys of all figures that this page can have. A figure that an earlier page had and this one has not is removed.
    """
    directory = out_dir / "figures"
    out_dir.mkdir(parents=True, exist_ok=True)
    for plot in document.plots:
        directory.mkdir(exist_ok=True)
        write_text(directory / f"{plot.key}.svg", plot_file(plot))
    for key in set(figures) - {plot.key for plot in document.plots}:
        (directory / f"{key}.svg").unlink(missing_ok=True)
    markdown, page = out_dir / f"{name}.md", out_dir / f"{name}.html"
    write_text(markdown, markdown_page(document))
    write_text(page, html_page(document))
    return markdown, page
