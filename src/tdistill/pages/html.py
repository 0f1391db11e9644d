"""Render a document as one HTML page from ``templates/``: no scripts, nothing loaded from outside, every text escaped.

Figures are drawn by matplotlib (``svg``). Only a legend's swatches are SVG written by hand, in ``templates/parts.html.j2``: each is one line,
for which matplotlib would write a file of two kilobytes, and in HTML a legend wraps with the page.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tdistill.pages.parts import Details, Document, Notes, Samples, Terms
from tdistill.pages.svg import Plot, panel_svgs
from tdistill.pages.tables import Table
from tdistill.pages.text import code_spans, visible

# Kind of part → the macro of templates/parts.html.j2 that renders it.
_MACROS: dict[type, str] = {
    str: "paragraph",
    Table: "table",
    Plot: "figure",
    Terms: "terms",
    Notes: "notes",
    Samples: "samples",
    Details: "details",
}
_DASH_ARRAYS = {"-": "none", "--": "7 3", ":": "2 3", "-.": "7 3 2 3"}
_LONG_TEXT = (1500, 30)  # characters, lines: above either, a text scrolls in its own box


def html_page(document: Document) -> str:
    """Render the whole page."""
    return _environment().get_template("page.html.j2").render(document=document)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tdistill.pages"),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "macro": lambda part: _MACROS[type(part)],
        "panels": _panels,
        "code_spans": code_spans,
        "dash_array": _DASH_ARRAYS.__getitem__,
    }
    environment.tests["long"] = _is_long
    return environment


def _finalized(value: Any) -> Any:
    """Make control characters visible in every text before it is escaped; leave what a template rendered."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _panels(plot: Plot) -> list[Markup]:
    return [Markup(svg) for svg in panel_svgs(plot)]


def _is_long(text: str) -> bool:
    characters, lines = _LONG_TEXT
    return len(text) > characters or text.count("\n") >= lines
