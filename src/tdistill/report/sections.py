"""List the sections of a report, once for Markdown, HTML and the terminal, and write its pages."""

from collections.abc import Sequence
from pathlib import Path

from tdistill.evaluation.metrics import METRICS
from tdistill.pages.document import write_document
from tdistill.pages.parts import Details, Document, Notes, Part, Samples, Section, Terms
from tdistill.report.data import ReportData, SystemResult
from tdistill.report.plots import all_plots, palette
from tdistill.report.tables import comparison_table, metrics_of, quality_table, sparsity_table, stages_table

FIGURES = ("quality", "curves", "sparsity", "time")
FEW_SEEDS = 5  # standard errors over fewer are rough


def write_report(data: ReportData, out_dir: Path) -> tuple[Path, Path]:
    """Write ``report.md``, ``figures/*.svg`` and ``report.html`` into ``out_dir``; return the paths of the two reports."""
    return write_document(out_dir, "report", report_document(data), FIGURES)


def report_document(data: ReportData) -> Document:
    """Return the whole report; sections that have nothing to show have no parts."""
    plots = all_plots(data)

    def figure(key: str) -> list[Part]:
        return [plots[key]] if key in plots else []

    sparsity: list[Part] = [sparsity_table(data.sparsity)] if data.sparsity and any(data.sparsity.sizes.values()) else []
    sections = [
        Section("quality", "Quality", [*_quality(data), *figure("quality")] if data.systems else []),
        Section("comparisons", "Comparisons", [comparison_table(data.differences)] if data.differences else []),
        Section("training", "Training", figure("curves")),
        Section("sparsity", "The teacher’s sparsity", figure("sparsity") + sparsity),
        Section("cost", "Time and size", [*figure("time"), stages_table(data.stages)] if data.stages else []),
        Section("samples", "Sample answers", _samples(data)),
        Section("recipe", "Recipe", [Details("The recipe, resolved", data.recipe_yaml, "yaml")] if data.recipe_yaml.strip() else []),
    ]
    return Document(data.title, data.facts, sections)


def _quality(data: ReportData) -> list[Part]:
    parts: list[Part] = [Terms({s.name: s.description for s in data.systems}, palette(data))]
    if data.protocol.strip():
        parts.append(data.protocol)
    parts += [quality_table(data.systems), Terms({METRICS[m][0]: METRICS[m][1] for m in metrics_of(data.systems)})]
    notes = [*seed_notes(data.systems), *data.notes]
    return parts + ([Notes(notes)] if notes else [])


def seed_notes(systems: Sequence[SystemResult]) -> list[str]:
    """Return what a reader should know of the training seeds; nothing if no system was trained."""
    seeds = max((s.seeds for s in systems), key=len, default=())
    if not seeds:
        return []
    if len(seeds) == 1:
        return ["One training seed: ± is over prompts only; add train.seeds to measure the spread over seeds."]
    few = " Fewer than five seeds give rough standard errors." if len(seeds) < FEW_SEEDS else ""
    return [f"Pooled over {len(seeds)} training seeds ({', '.join(map(str, seeds))}): ± is over seeds and prompts.{few}"]


def _samples(data: ReportData) -> list[Part]:
    if not data.samples:
        return []
    first = next((s.seeds[0] for s in data.systems if len(s.seeds) > 1), None)
    told: list[Part] = [] if first is None else [f"The students' answers are those of the first training seed, {first}."]
    return [*told, Samples(data.samples, palette(data))]
