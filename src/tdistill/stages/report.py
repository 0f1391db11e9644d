"""``report``: the pages of a finished run."""

from pathlib import Path
from typing import Any

from tdistill.pipeline import Run
from tdistill.report.collect import collect
from tdistill.report.render import write_report


def report_settings(run: Run) -> dict[str, Any]:
    """What shapes the report."""
    return {"title": run.recipe.title, "shown": run.recipe.evaluation.num_samples_shown}


def make_report(run: Run, directory: Path) -> dict[str, Any]:
    """Write ``report.md`` and ``report.html``."""
    markdown, page = write_report(collect(run), directory)
    return {"markdown": markdown.name, "page": page.name}
