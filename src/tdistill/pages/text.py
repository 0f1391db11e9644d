"""Make text that others wrote safe to show: control characters, HTML and Markdown."""

import html
import re

from tdistill.runtime.errors import visible


def escape_html(text: str) -> str:
    """Escape ``text`` for an element's content or a quoted attribute."""
    return html.escape(visible(text), quote=True)


def escape_markdown(text: str) -> str:
    """Escape ``text`` so that one line of Markdown shows it literally."""
    text = re.sub(r"[\\`*\[\]|#~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(visible(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_spans(text: str) -> list[tuple[str, bool]]:
    """Split a note into pieces, each with whether it is code: what stands between two backticks.

    Examples:
        >>> code_spans("run `tdistill compare` first")
        [('run ', False), ('tdistill compare', True), (' first', False)]
    """
    pieces = text.split("`")
    closed = len(pieces) % 2 == 1
    if not closed:  # the last backtick opens nothing
        pieces[-2:] = ["`".join(pieces[-2:])]
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


def note_markdown(text: str) -> str:
    """Escape a note for Markdown; its code spans stay code."""
    return "".join(f"`{visible(piece)}`" if code else _escaped_piece(piece) for piece, code in code_spans(text))


def _escaped_piece(piece: str) -> str:
    """Escape a piece of a line, and keep the blanks at its ends."""
    before, after = (" " if piece[:1].isspace() else ""), (" " if piece[-1:].isspace() and piece.strip() else "")
    return before + escape_markdown(piece) + after


def fenced(text: str, language: str = "") -> str:
    """Return ``text`` as a code block of Markdown, whose fence is longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"
