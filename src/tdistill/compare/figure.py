"""Draw the figures of a comparison: quality by cost, and validation by time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from tdistill.compare.data import COSTS, METRICS, PooledMethod
from tdistill.compare.table import Quality
from tdistill.evaluation.metrics import TEACHER
from tdistill.pages.lines import REFERENCE_COLOUR, lines_of, thinned
from tdistill.pages.svg import Line, Panel, Plot, set_scale
from tdistill.pages.tables import format_number
from tdistill.report.tables import title
from tdistill.training.clock import SECONDS

COST_TITLES = {"seconds": "seconds of training", "tokens": "response tokens", "steps": "optimizer steps"}
VALIDATIONS = {"eval_forward_kl": "forward KL, validation", "eval_reverse_kl": "reverse KL, validation"}
OWN_LOSS = "eval_loss"
LOG_RATIO = 8.0  # values that lie further apart go on a logarithmic axis
CLOSE = 0.02  # of an axis: points that lie closer are moved apart
APART = 7.0  # points, so far
SEED_ALPHA = 0.4  # of one seed's line where the mean is drawn too
POINTS_PER_INCH = 72


def lines(methods: Sequence[PooledMethod]) -> dict[str, Line]:
    """Return label → line style, for each method that a train stage made."""
    return lines_of([m.label for m in trained(methods)])


def trained(methods: Sequence[PooledMethod]) -> list[PooledMethod]:
    """Return the methods that a train stage made."""
    return [m for m in methods if not m.first.is_reference]


def cost_plot(methods: Sequence[PooledMethod], quality: Quality) -> Plot | None:
    """Plot every metric against every cost. A method has a point at the cost of its saved checkpoint, and a line to the end of training."""
    drawn = lines(methods)
    shown = [(metric, key) for metric in METRICS for key in COSTS if _known(trained(methods), quality, metric, key)]
    panels = [_cost_panel(metric, key, methods, quality, drawn) for metric, key in shown]
    if not panels:
        return None
    caption = (
        "Quality on the test prompts (vertical) against the cost of training (horizontal) up to the checkpoint that was saved, the best by "
        "validation. The thin line goes on to the end of training. Bars are ±1 standard error over seeds and prompts; points at the same place "
        "are moved apart. Dashed: the teacher; dotted: the start of training; each is drawn only if it is near the methods."
    )
    return Plot("cost", caption, panels, columns=3, size=(330, 210), legend=list(drawn.values()))


def _known(methods: Sequence[PooledMethod], quality: Quality, metric: str, key: str) -> list[PooledMethod]:
    return [m for m in methods if math.isfinite(quality[m.label][metric].mean) and math.isfinite(m.cost("best", key))]


def _cost_panel(metric: str, key: str, methods: Sequence[PooledMethod], quality: Quality, drawn: Mapping[str, Line]) -> Panel:
    known = _known(trained(methods), quality, metric, key)
    at = {m.label: (m.cost("best", key), m.cost("total", key)) for m in known}
    log = _far_apart([cost for both in at.values() for cost in both])
    levels = _levels(methods, quality, metric, known)

    def draw(ax: Axes) -> None:
        for level, dash in levels:
            ax.axhline(level, color=REFERENCE_COLOUR, linestyle=dash, linewidth=1)
        for label, shift in _shifts({label: best for label, (best, _) in at.items()}, log).items():
            value, (best, end) = quality[label][metric], at[label]
            moved = ax.transData + ScaledTranslation(shift / POINTS_PER_INCH, 0, ax.figure.dpi_scale_trans)
            look: dict[str, Any] = {"color": drawn[label].colour, "transform": moved}
            if end > best:
                ax.plot([best, end], [value.mean] * 2, linewidth=1, marker="|", markevery=[1], **look)
            error = value.stderr if math.isfinite(value.stderr) else 0.0
            ax.errorbar(best, value.mean, yerr=error, fmt="o", markersize=5, capsize=3, linewidth=1.8, **look)
            ax.update_datalim([(best, value.mean - error), (end, value.mean + error)])  # what is moved has no part in the limits
        ax.autoscale_view()
        ax.set_title(title(metric))
        ax.set_xlabel(COST_TITLES[key] + (", log scale" if log else ""))
        ax.margins(x=0.12)
        set_scale(ax, "x", log=log)
        set_scale(ax, "y")

    listed = "; ".join(f"{m.label} {format_number(quality[m.label][metric].mean)} at {format_number(at[m.label][0])}" for m in known)
    return Panel(f"{title(metric)} by {COST_TITLES[key]}: {listed}.", draw)


def _far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > LOG_RATIO * min(values)


def _levels(methods: Sequence[PooledMethod], quality: Quality, metric: str, shown: Sequence[PooledMethod]) -> list[tuple[float, str]]:
    """Return (value, dash) of the teacher and of the students' start, if these values are close enough to what is shown."""
    start = "sft" if any(m.first.name == "sft" for m in methods) else "start"
    dashes = {TEACHER: "--", start: ":"}
    found = [(quality[m.label][metric].mean, dashes[m.first.name]) for m in methods if m.first.name in dashes]
    ends = [e.mean + side * e.stderr for e in (quality[m.label][metric] for m in shown) for side in (-1, 1) if math.isfinite(e.stderr)]
    low, high = min(ends, default=-math.inf), max(ends, default=math.inf)
    return [(value, dash) for value, dash in found if low - (high - low) <= value <= high + (high - low)]


def _shifts(at: Mapping[str, float], log: bool) -> dict[str, float]:
    """Return the distance in points by which each label is moved, so that labels at about the same place can be told apart."""
    places = {label: math.log(x) if log else x for label, x in at.items()}
    width = max(places.values()) - min(places.values()) or 1.0
    groups: list[list[str]] = []
    for label in sorted(places, key=lambda name: places[name]):
        if groups and places[label] - places[groups[-1][-1]] <= CLOSE * width:
            groups[-1].append(label)
        else:
            groups.append([label])
    return {label: APART * (i - (len(group) - 1) / 2) for group in groups for i, label in enumerate(group)}


def validation_plot(methods: Sequence[PooledMethod]) -> Plot | None:
    """Plot validation by seconds and mark the saved checkpoint. Own losses share a panel where the objective is the same."""
    drawn, timed = lines(methods), [m for m in trained(methods) if all(s.validations for s in m.students)]
    panels = [_validation_panel(name, key, timed, drawn) for key, name in VALIDATIONS.items() if timed]
    for objective in dict.fromkeys(m.first.objective for m in timed):
        same = [m for m in timed if m.first.objective == objective]
        if len(same) > 1:
            panels.append(_validation_panel(f"loss of {objective}, validation", OWN_LOSS, same, drawn))
    if not panels:
        return None
    caption = (
        "Validation by seconds of training. Strong lines are means over seeds, pale lines single seeds; a star is the checkpoint that was "
        "saved."
    )
    return Plot("validation", caption, panels, columns=2, size=(420, 260), legend=[drawn[m.label] for m in timed])


def _validation_panel(name: str, key: str, methods: Sequence[PooledMethod], drawn: Mapping[str, Line]) -> Panel:
    log_x = _far_apart([s.total.seconds for m in methods for s in m.students])
    log_y = _far_apart([v[key] for m in methods for s in m.students for v in s.validations])

    def draw(ax: Axes) -> None:
        for method in methods:
            line, several = drawn[method.label], len(method.students) > 1
            for student in method.students:
                points = np.array([(v[SECONDS], v[key]) for v in student.validations])
                ax.plot(*thinned(points).T, line.dash, color=line.colour, linewidth=1.2 if several else 1.8, alpha=SEED_ALPHA if several else 1)
                chosen = [(v[SECONDS], v[key]) for v in student.validations if v["step"] == student.best.steps]
                ax.plot(*np.array(chosen).reshape(-1, 2).T, "*", color=line.colour, markersize=10)
            if several:
                ax.plot(*thinned(_mean(method, key)).T, line.dash, color=line.colour, linewidth=1.8)
        ax.set_title(name + (", log scale" if log_y else ""))
        ax.set_xlabel(COST_TITLES["seconds"] + (", log scale" if log_x else ""))
        set_scale(ax, "x", log=log_x)
        set_scale(ax, "y", log=log_y)

    ends = {m.label: float(np.mean([s.validations[-1][key] for s in m.students])) for m in methods}
    return Panel(f"{name}, by seconds: " + "; ".join(f"{label} ends at {format_number(end)}" for label, end in ends.items()) + ".", draw)


def _mean(method: PooledMethod, key: str) -> np.ndarray:
    """Return seconds and values as [n, 2]: means over seeds, at the steps that all seeds have."""
    tables = [{v["step"]: (v[SECONDS], v[key]) for v in s.validations} for s in method.students]
    steps = sorted(set.intersection(*(set(t) for t in tables)))
    return np.array([np.mean([t[step] for t in tables], axis=0) for step in steps]).reshape(-1, 2)
