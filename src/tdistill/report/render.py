"""Write a report: ``report.md`` with its figures beside it, and the self-contained ``report.html``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tdistill.evaluation.metrics import METRICS
from tdistill.pages.page import html_page
from tdistill.pages.svg import Plot, plot_file
from tdistill.pages.tables import to_markdown
from tdistill.pages.text import escape_html, escape_markdown, fenced
from tdistill.report.data import ReportData, Sample
from tdistill.report.plots import all_plots
from tdistill.report.tables import comparison_table, metrics_of, quality_table, sparsity_table, stages_table
from tdistill.runtime.files import write_text

FIGURES = ("quality", "curves", "sparsity", "time")


def write_report(data: ReportData, out_dir: Path) -> tuple[Path, Path]:
    """Write ``report.md``, ``figures/*.svg`` and ``report.html`` into ``out_dir``; return the paths of the two reports.

    Each file is replaced in one step, so that a reader never sees half of one. The same data gives the same bytes. A figure
    of an earlier report that this one has no data for is removed.
    """
    plots = all_plots(data)
    out_dir.mkdir(parents=True, exist_ok=True)
    for key in FIGURES:
        path = out_dir / "figures" / f"{key}.svg"
        if key in plots:
            path.parent.mkdir(exist_ok=True)
            write_text(path, plot_file(plots[key]))
        else:
            path.unlink(missing_ok=True)
    markdown, page = out_dir / "report.md", out_dir / "report.html"
    write_text(markdown, markdown_page(data, plots))
    write_text(page, html_page(data, plots))
    return markdown, page


def markdown_page(data: ReportData, plots: Mapping[str, Plot]) -> str:
    """Render the report as Markdown that refers to ``figures/*.svg``; sections that have nothing to show are left out."""

    def figure(key: str) -> list[str]:
        return [f"![{escape_markdown(plots[key].caption)}](figures/{key}.svg)"] if key in plots else []

    has_sizes = data.sparsity is not None and any(data.sparsity.sizes.values())
    sparsity = [to_markdown(sparsity_table(data.sparsity))] if data.sparsity is not None and has_sizes else []
    comparisons = comparison_table(data.comparisons)
    sections: list[tuple[str, list[str]]] = [
        ("Quality", _quality(data) + figure("quality") if data.systems else []),
        ("Comparisons", [comparisons.caption, to_markdown(comparisons)] if data.comparisons else []),
        ("Training", figure("curves")),
        ("The teacher’s sparsity", figure("sparsity") + sparsity),
        ("Time and size", [*figure("time"), to_markdown(stages_table(data.stages))] if data.stages else []),
        ("Sample answers", [block for number, s in enumerate(data.samples, 1) for block in _sample(number, s)]),
        ("Recipe", [_details("The recipe, resolved", fenced(data.recipe_yaml, "yaml"))] if data.recipe_yaml.strip() else []),
    ]
    blocks = [f"# {escape_markdown(data.title)}", bullets(data.facts)]
    for title, body in sections:
        blocks += [f"## {title}", *body] if body else []
    return "\n\n".join(filter(None, blocks)) + "\n"


def _quality(data: ReportData) -> list[str]:
    table = quality_table(data.systems)
    return [
        bullets({s.name: s.description for s in data.systems}),
        escape_markdown(data.protocol),
        table.caption,
        to_markdown(table),
        bullets({METRICS[m][0]: METRICS[m][1] for m in metrics_of(data.systems)}),
        "\n".join(f"- **Note:** {escape_markdown(note)}" for note in data.notes),
    ]


def _sample(number: int, sample: Sample) -> Sequence[str]:
    answers = [block for name, text in sample.answers.items() for block in (f"**{escape_markdown(name)}**", fenced(text))]
    return [f"### Prompt {number}", fenced(sample.prompt), *answers]


def bullets(items: Mapping[str, str]) -> str:
    """Render terms and their texts as a Markdown list."""
    return "\n".join(f"- **{escape_markdown(term)}:** {escape_markdown(text)}" for term, text in items.items())


def _details(summary: str, body: str) -> str:
    return f"<details>\n<summary>{escape_html(summary)}</summary>\n\n{body}\n\n</details>"
