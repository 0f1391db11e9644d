"""Text that others wrote, made safe to show: control characters, HTML and Markdown."""

import html
import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with control characters, text-direction overrides and lone surrogates replaced by symbols that show them."""
    text = text.replace("\r\n", "\n")
    return _CONTROLS.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)


def escape_html(text: str) -> str:
    """``text`` for an element's content or a quoted attribute."""
    return html.escape(visible(text), quote=True)


def escape_markdown(text: str) -> str:
    """``text`` on one line of Markdown, taken literally."""
    text = re.sub(r"[\\`*\[\]|#~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(visible(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
