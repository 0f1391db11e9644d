"""Render the report as one HTML page: no scripts, nothing loaded from outside, every text escaped."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

from tdistill.evaluation.metrics import METRICS
from tdistill.pages.svg import Line, Plot, panel_svgs
from tdistill.pages.tables import to_html
from tdistill.pages.text import escape_html
from tdistill.report.data import ReportData, Sample, System
from tdistill.report.plots import palette
from tdistill.report.tables import comparison_table, metrics_of, quality_table, sparsity_table, stages_table

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{facts}
<nav aria-label="Sections"><ul>
{links}
</ul></nav>
</header>
<main>
{sections}
</main>
</body>
</html>
"""

_DASH_ARRAYS = {"-": "none", "--": "7 3", ":": "2 3", "-.": "7 3 2 3"}
_LONG_ANSWER = (1500, 30)  # characters, lines: above either, an answer scrolls in its own box


def html_page(data: ReportData, plots: Mapping[str, Plot]) -> str:
    """Render a run's report; sections that have nothing to show are left out."""
    return page_html(data.title, data.facts, [(key, title, body) for key, title, body in _sections(data, plots) if body])


def page_html(title: str, facts: Mapping[str, str], sections: Sequence[tuple[str, str, str]]) -> str:
    """Render a whole page from sections (key, heading, HTML)."""
    return _PAGE.format(
        title=escape_html(title),
        style=files("tdistill.pages").joinpath("style.css").read_text("utf-8"),
        facts=_definitions("facts", facts),
        links="\n".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{title}</h2>\n{body}\n</section>'
            for key, title, body in sections
        ),
    )


def _sections(data: ReportData, plots: Mapping[str, Plot]) -> list[tuple[str, str, str]]:
    def figure(key: str) -> str:
        return figure_html(plots[key]) if key in plots else ""

    sparsity = to_html(sparsity_table(data.sparsity)) if data.sparsity and any(data.sparsity.sizes.values()) else ""
    return [
        ("quality", "Quality", _quality(data) + figure("quality") if data.systems else ""),
        ("comparisons", "Comparisons", to_html(comparison_table(data.comparisons)) if data.comparisons else ""),
        ("training", "Training", figure("curves")),
        ("sparsity", "The teacher’s sparsity", figure("sparsity") + sparsity),
        ("cost", "Time and size", (figure("time") + to_html(stages_table(data.stages))) if data.stages else ""),
        ("samples", "Sample answers", _samples(data.samples, palette(data))),
        ("recipe", "Recipe", _recipe(data.recipe_yaml)),
    ]


def _quality(data: ReportData) -> str:
    metrics = {METRICS[m][0]: METRICS[m][1] for m in metrics_of(data.systems)}
    parts = [
        _systems(data.systems, palette(data)),
        paragraph(data.protocol) if data.protocol.strip() else "",
        to_html(quality_table(data.systems)),
        _definitions("metrics", metrics),
        _list("notes", [escape_html(note) for note in data.notes]),
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _systems(systems: Sequence[System], colours: Mapping[str, str]) -> str:
    items = (
        f'<div><dt><span class="swatch" style="--colour:{colours[s.name]}"></span>{escape_html(s.name)}</dt>'
        f"<dd>{escape_html(s.description)}</dd></div>"
        for s in systems
    )
    return '<dl class="systems">\n' + "\n".join(items) + "\n</dl>"


def _definitions(name: str, items: Mapping[str, str]) -> str:
    if not items:
        return ""
    rows = (f"<div><dt>{escape_html(term)}</dt><dd>{escape_html(text)}</dd></div>" for term, text in items.items())
    return f'<dl class="{name}">\n' + "\n".join(rows) + "\n</dl>"


def _list(name: str, items: Sequence[str]) -> str:
    return f'<ul class="{name}">\n' + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>" if items else ""


def paragraph(text: str) -> str:
    """Render text as a paragraph, escaped."""
    return f"<p>{escape_html(text)}</p>"


def figure_html(plot: Plot) -> str:
    """Render a figure with its caption and legend; its panels stand side by side as the width allows."""
    return (
        f'<figure id="figure-{plot.key}">\n<figcaption>{escape_html(plot.caption)}</figcaption>\n'
        + _list("legend", [_legend_item(line) for line in plot.legend])
        + f'\n<div class="panels columns-{plot.columns}">\n'
        + "\n".join(panel_svgs(plot))
        + "\n</div>\n</figure>\n"
    )


def _legend_item(line: Line) -> str:
    stroke = f'stroke="{line.colour}" stroke-width="3" stroke-dasharray="{_DASH_ARRAYS[line.dash]}"'
    swatch = f'<svg viewBox="0 0 30 8" aria-hidden="true"><line x1="0" y1="4" x2="30" y2="4" {stroke}/></svg>'
    return f"{swatch}{escape_html(line.name)}"


def _samples(samples: Sequence[Sample], colours: Mapping[str, str]) -> str:
    cards = []
    for number, sample in enumerate(samples, 1):
        answers = "\n".join(_answer(name, text, colours.get(name, "currentColor")) for name, text in sample.answers.items())
        cards.append(
            f'<article class="sample" aria-labelledby="sample-{number}">\n<h3 id="sample-{number}">Prompt {number}</h3>\n'
            f'<div class="prompt">{_text(sample.prompt)}</div>\n<div class="answers">\n{answers}\n</div>\n</article>'
        )
    return '<div class="samples">\n' + "\n".join(cards) + "\n</div>" if cards else ""


def _answer(name: str, text: str, colour: str) -> str:
    return f'<div class="answer" style="--colour:{colour}"><h4>{escape_html(name)}</h4>{_text(text)}</div>'


def _text(text: str) -> str:
    """Render text with its white space; a long one scrolls, and the keyboard can reach it for this."""
    if not text.strip():
        return '<p class="text empty">(empty)</p>'
    characters, lines = _LONG_ANSWER
    is_long = len(text) > characters or text.count("\n") >= lines
    attributes = 'class="text long" tabindex="0"' if is_long else 'class="text"'
    return f"<p {attributes}>{escape_html(text)}</p>"


def _recipe(recipe: str) -> str:
    if not recipe.strip():
        return ""
    return f"<details>\n<summary>The recipe, resolved</summary>\n<pre><code>{escape_html(recipe)}</code></pre>\n</details>"
