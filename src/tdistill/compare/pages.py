"""Write a comparison: ``compare.md`` and ``compare.html`` with their figures, and ``compare.jsonl``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tdistill
from tdistill.compare.comparing import Comparison
from tdistill.compare.data import COSTS, METRICS, PooledMethod
from tdistill.compare.figure import cost_plot, validation_plot
from tdistill.compare.frontier import frontier_plot, frontier_table
from tdistill.experiment.experiment import MARKER
from tdistill.pages.document import write_document
from tdistill.pages.parts import Document, Notes, Part, Section
from tdistill.pages.svg import Plot
from tdistill.pages.tables import MISSING, Cell, Table
from tdistill.runtime.errors import OutputError
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.outputs import claimed
from tdistill.statistics.pooling import pooled
from tdistill.training.arguments import DEFAULT_ARGUMENTS

NAME, FIGURES = "compare", ("cost", "frontier", "validation")


def write(comparison: Comparison, output: Path) -> tuple[Path, Path]:
    """Write ``compare.md``, ``compare.html``, ``figures/*.svg`` and ``compare.jsonl``; return the paths of the two pages.

    Raises:
        OutputError: the directory can't be made or written.
    """
    if (output / MARKER).exists():
        raise OutputError(f"{output} is the output directory of a run: choose another --output.")
    with claimed(output, "--output", None, "compare"):
        pages = write_document(output, NAME, comparison_document(comparison), FIGURES)
        write_jsonl(output / f"{NAME}.jsonl", rows(comparison))
    return pages


def comparison_document(comparison: Comparison) -> Document:
    """Return the whole page."""
    title = f"{sum(not m.first.is_reference for m in comparison.methods)} methods compared"
    return Document(title, _facts(comparison), _sections(comparison))


def _frontier(comparison: Comparison) -> Plot | None:
    if not comparison.curves:
        return None
    caption = (
        "Quality (vertical) against the entropy of the texts (horizontal): each line joins a method's decoding temperatures. Mean ± 1 standard "
        "error over seeds and prompts; dashed grey: the teacher. Of two lines, the better one is better at every temperature."
    )
    return frontier_plot("frontier", caption, comparison.curves)


def _facts(comparison: Comparison) -> dict[str, str]:
    first = comparison.collected.evaluations[0]
    answers = {k.removeprefix("evaluation."): v for k, v in first.protocol.items() if k.startswith("evaluation.")}
    return {
        "runs": ", ".join(dict.fromkeys(str(e.run) for e in comparison.collected.evaluations)),
        "teacher": first.teacher,
        "test prompts": str(len(first.prompts)),
        "answers": ", ".join(f"{k} {v}" for k, v in answers.items()),
        "baseline": comparison.baseline.label if comparison.baseline else "none",
        "machines": "; ".join(sorted({s.machine for s in comparison.collected.students})),
    }


def _sections(comparison: Comparison) -> list[Section]:
    tables, notes = comparison.tables, [Notes(comparison.notes, terminal=True)] if comparison.notes else []
    frontier = [frontier_table(comparison.at_equal_entropy)] if comparison.at_equal_entropy else []
    return [
        Section("methods", "Methods", [tables[0], *notes, *_where(comparison.methods)]),
        Section("cost", "Quality by cost", _drawn(cost_plot(comparison.methods, comparison.quality))),
        Section("differences", "Differences", tables[1:]),
        Section("temperatures", "At equal entropy", [*_drawn(_frontier(comparison)), *frontier]),
        Section("validation", "Validation by time", _drawn(validation_plot(comparison.methods))),
    ]


def _drawn(plot: Plot | None) -> list[Part]:
    return [] if plot is None else [plot]


def _where(found: Sequence[PooledMethod]) -> list[Table]:
    header = ["method", "what it is", "checkpoint picked by", "seeds", "runs"]
    rows = [[Cell(m.label), Cell(m.first.objective), Cell(_picked_by(m)), *map(Cell, _origin(m))] for m in found]
    return [
        Table(
            "What each method is: its objective, the validation metric that picked its checkpoint, its training seeds, its runs.",
            header,
            rows,
            ["left"] * len(header),
        )
    ]


def _picked_by(method: PooledMethod) -> str:
    if method.first.is_reference:
        return MISSING
    return method.first.settings["arguments"].get("metric_for_best_model", DEFAULT_ARGUMENTS["metric_for_best_model"])


def _origin(method: PooledMethod) -> tuple[str, str]:
    return ", ".join(map(str, method.seeds)), ", ".join(dict.fromkeys(str(s.run) for s in method.students))


def rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield one row for the comparison, then one for each student, method, difference, and method at equal entropy. Its ``kind`` says which."""
    collected = comparison.collected
    protocol = collected.evaluations[0].protocol | {"test prompts": len(collected.evaluations[0].prompts)}
    places = [str(e.directory) for e in collected.evaluations]
    yield {"kind": "comparison", "tdistill": tdistill.__version__, "evaluations": places, "protocol": protocol, "notes": comparison.notes}
    for method in comparison.methods:
        for s in method.students:
            own = {m: _finite(asdict(pooled({s.seed: s.scores[m]}))) for m in METRICS if s.scores.get(m)}
            row = {"kind": "student", "method": method.label, "name": s.name, "seed": s.seed, "run": str(s.run), "machine": s.machine}
            row |= {"objective": s.objective, "settings": s.settings, "metrics": own, "validations": s.validations}
            yield row | {"best": _finite(asdict(s.best)), "total": _finite(asdict(s.total))}
        costs = {which: _finite({key: method.cost(which, key) for key in COSTS}) for which in ("best", "total")}
        metrics = {k: _finite(asdict(v)) for k, v in comparison.quality[method.label].items()}
        yield {"kind": "method", "method": method.label, "objective": method.first.objective, "seeds": method.seeds, "metrics": metrics} | costs
    for d in comparison.differences:
        yield {"kind": "difference", "method": d.a, "baseline": d.b, "metric": d.metric} | _finite(asdict(d.value))
    for e in comparison.at_equal_entropy:
        yield {"kind": "at_equal_entropy"} | _finite(asdict(e))


def _finite(value: Any) -> Any:
    """Replace non-finite numbers by None, also inside dicts, since JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
