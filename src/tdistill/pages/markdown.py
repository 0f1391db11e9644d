"""Render documents and tables as Markdown."""

from collections.abc import Mapping

from tdistill.pages.parts import Details, Document, Notes, Part, Sample, Samples, Terms
from tdistill.pages.svg import Plot
from tdistill.pages.tables import Table
from tdistill.pages.text import escape_html, escape_markdown, fenced, note_markdown


def markdown_page(document: Document) -> str:
    """Render a document, which refers to its figures as ``figures/KEY.svg``."""
    blocks = [f"# {escape_markdown(document.title)}", bullets(document.facts)]
    for section in document.shown:
        blocks += [f"## {escape_markdown(section.title)}", *map(_part, section.parts)]
    return "\n\n".join(filter(None, blocks)) + "\n"


def to_markdown(table: Table) -> str:
    """Render a pipe table, without its caption."""
    lines = [list(map(escape_markdown, table.header)), [":---" if a == "left" else "---:" for a in table.align]]
    for row in table.rows:
        lines.append([f"**{escape_markdown(c.text)}**" if c.strong and c.text else escape_markdown(c.text) for c in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Mapping[str, str]) -> str:
    """Render terms and their texts as a list."""
    return "\n".join(f"- **{escape_markdown(term)}:** {escape_markdown(text)}" for term, text in items.items())


def _part(part: Part) -> str:
    match part:
        case Table():
            return f"{escape_markdown(part.caption)}\n\n{to_markdown(part)}"
        case Plot():
            caption = escape_markdown(part.caption)
            return f"![{caption}](figures/{part.key}.svg)\n\n{caption}"
        case Terms():
            return bullets(part.texts)
        case Notes():
            return "\n".join(f"- **Note:** {note_markdown(text)}" for text in part.texts)
        case Samples():
            return "\n\n".join(block for number, sample in enumerate(part.samples, 1) for block in _sample(number, sample))
        case Details():
            return f"<details>\n<summary>{escape_html(part.summary)}</summary>\n\n{fenced(part.text, part.language)}\n\n</details>"
        case str():
            return escape_markdown(part)


def _sample(number: int, sample: Sample) -> list[str]:
    blocks = [block for name, text in sample.answers.items() for block in (f"**{escape_markdown(name)}**", fenced(text))]
    return [f"### Prompt {number}", fenced(sample.prompt), *blocks]
