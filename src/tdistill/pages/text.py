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


def fenced(text: str, language: str = "") -> str:
    """Return ``text`` as a code block of Markdown, whose fence is longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"
