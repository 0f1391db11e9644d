"""Write the pages of a finished run (the stage ``report``)."""

from pathlib import Path
from typing import Any

from tdistill.experiment.pipeline import Run


def report_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the report, beside its results."""
    return {"title": run.recipe.title, "shown": run.recipe.evaluation.num_samples_shown}


def make_report(run: Run, directory: Path) -> dict[str, Any]:
    """Write ``report.md`` and ``report.html``."""
    # Here, because ``collect`` imports stages: whoever imports it first would meet itself half made.
    from tdistill.experiment.report import collect
    from tdistill.report.sections import write_report

    markdown, page = write_report(collect(run), directory)
    return {"markdown": markdown.name, "page": page.name}
