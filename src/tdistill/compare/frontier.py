"""Compare methods at equal entropy: read each method at the temperature at which its entropy equals the baseline's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from tdistill.evaluation.metrics import METRICS, TEACHER
from tdistill.pages.lines import REFERENCE_COLOUR, lines_of
from tdistill.pages.svg import Line, Panel, Plot, set_scale
from tdistill.pages.tables import MISSING, Cell, Table, format_estimate, format_number, right_aligned
from tdistill.report.tables import format_p, title
from tdistill.statistics.equal_entropy import ENTROPY, AtLevel, TemperatureCurve, at_level, mean_of
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared, compared, pooled

READ = ("teacher_nll", "rouge_l")
EXCESS = "excess"


@dataclass(frozen=True)
class AtBaseline:
    """Hold a method at the entropy that the baseline has at one temperature. It has no values if the method does not reach that entropy."""

    method: str
    baseline: str
    baseline_temperature: float
    level: float  # the baseline's mean entropy there
    temperature: float | None  # the method's own
    values: dict[str, Estimate]  # metric → pooled over seeds and prompts
    differences: dict[str, Compared]  # metric → less the baseline's


def at_baseline(curves: Mapping[str, TemperatureCurve], baseline: str, metrics: Sequence[str] = READ) -> list[AtBaseline]:
    """Read every method at the entropy of each of the baseline's temperatures, best first by the first metric.

    ``statistics.equal_entropy`` says how a method is read at an entropy.

    Args:
        curves: method's name → curve; the baseline's has at least two temperatures.
        baseline: the method whose mean entropy is the level.
        metrics: the metrics to read there.
    """
    found = []
    for temperature in sorted(curves[baseline]):
        level = mean_of(curves[baseline], temperature, ENTROPY)
        read = {name: _reached(curve, metrics, level) for name, curve in curves.items()}
        bases = {name: {} if name == baseline else read[baseline] for name in read}
        rows = [AtBaseline(name, baseline, temperature, level, *_against(own, bases[name])) for name, own in read.items()]
        found += sorted(rows, key=lambda r: _order(r, metrics[0]))
    return found


def _reached(curve: TemperatureCurve, metrics: Sequence[str], level: float) -> dict[str, AtLevel]:
    read = {m: at_level(curve, m, level) for m in metrics}
    return {m: x for m, x in read.items() if x is not None}


def _against(own: Mapping[str, AtLevel], base: Mapping[str, AtLevel]) -> tuple[float | None, dict[str, Estimate], dict[str, Compared]]:
    """Return the method's temperature, its values, and their differences from the baseline's."""
    differences = {m: compared(own[m].values, base[m].values) for m in own if m in base}
    temperature = next((x.temperature for x in own.values()), None)
    return temperature, {m: pooled(x.values) for m, x in own.items()}, {m: d for m, d in differences.items() if d is not None}


def _order(row: AtBaseline, metric: str) -> tuple[bool, float]:
    if metric not in row.values:
        return True, 0.0
    mean = row.values[metric].mean
    return False, -mean if METRICS[metric][2] == "higher" else mean


def frontier_table(rows: Sequence[AtBaseline], metrics: Sequence[str] = READ) -> Table:
    """Build a table with one line for each method and temperature of the baseline."""
    header = [METRICS[ENTROPY][0], "method", "T", *(x for m in metrics for x in (title(m), "Δ (p)"))]
    lines = [
        [
            Cell(f"{r.level:.2f} (T = {r.baseline_temperature:g})"),
            Cell(r.method),
            Cell(MISSING if r.temperature is None else f"{r.temperature:.2f}"),
            *(cell for m in metrics for cell in (Cell(format_estimate(r.values.get(m))), _difference_cell(r, m))),
        ]
        for r in rows
    ]
    caption = (
        f"Every method at equal {METRICS[ENTROPY][0]}: at the temperature T, interpolated between those measured, at which its texts have the "
        f"entropy of {rows[0].baseline} at the temperature in brackets. Mean over seeds and prompts ± standard error. Δ: difference to "
        f"{rows[0].baseline}, paired by seed and prompt, with its p-value. A dash: the measured temperatures do not reach this entropy."
    )
    return Table(caption, header, lines, right_aligned(len(header), left=2), terminal=True)


def _difference_cell(row: AtBaseline, metric: str) -> Cell:
    """Format mean ± standard error and p, or a dash."""
    found = row.differences.get(metric)
    if found is None:
        return Cell(MISSING)
    return Cell(f"{format_estimate(found.difference, signed=True)} ({format_p(found.p_value)})")


def frontier_plot(key: str, caption: str, curves: Mapping[str, TemperatureCurve]) -> Plot:
    """Plot quality against entropy, one line for each method through its temperatures.

    Where a line is better, its method is better at that entropy. Teacher NLL grows with the entropy, nat by nat, which would hide the
    distance of two lines: so teacher NLL minus entropy is drawn.
    """
    styles = lines_of([name for name in curves if name != TEACHER])
    styles |= {TEACHER: Line(TEACHER, REFERENCE_COLOUR, "--")} if TEACHER in curves else {}
    drawn = {
        name: {t: {s: _with_excess(scores) for s, scores in seeds.items()} for t, seeds in curve.items()} for name, curve in curves.items()
    }
    panels = [_panel(metric, shown, drawn, styles) for metric, shown in ((EXCESS, "teacher NLL − entropy ↓"), ("rouge_l", title("rouge_l")))]
    return Plot(key, caption, panels, columns=2, size=(440, 320), legend=list(styles.values()))


def _with_excess(scores: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Return the scores with teacher NLL − entropy added. It estimates KL(q‖p) on the method's own text."""
    nll, entropy = scores.get("teacher_nll", {}), scores.get(ENTROPY, {})
    return {**scores, EXCESS: {p: nll[p] - entropy[p] for p in nll.keys() & entropy.keys()}}


def _panel(metric: str, shown: str, curves: Mapping[str, TemperatureCurve], styles: Mapping[str, Line]) -> Panel:
    points: dict[str, list[tuple[float, Estimate, float]]] = {}
    for name in styles:
        for t, seeds in sorted(curves[name].items()):
            at = [pooled({s: scores.get(m, {}) for s, scores in seeds.items()}) for m in (ENTROPY, metric)]
            if at[0].n and at[1].n:
                points.setdefault(name, []).append((at[0].mean, at[1], t))

    def draw(ax: Axes) -> None:
        for name, own in points.items():
            line = styles[name]
            x, y = [x for x, _, _ in own], [e.mean for _, e, _ in own]
            error = [e.stderr if e.stderr == e.stderr else 0.0 for _, e, _ in own]
            look: dict[str, Any] = {"linestyle": line.dash, "color": line.colour, "markersize": 4.5, "linewidth": 1.6}
            ax.errorbar(x, y, yerr=error, fmt="o", elinewidth=0.9, capsize=2, **look)
        ax.set_xlabel("entropy")
        ax.set_title(shown)
        set_scale(ax, "x")
        set_scale(ax, "y")

    told = "; ".join(f"{n}: " + ", ".join(f"T {t:g} {x:.3f} {format_number(e.mean)}" for x, e, t in own) for n, own in points.items())
    return Panel(f"{shown} against entropy. {told}.", draw)
