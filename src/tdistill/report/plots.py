"""Build the report's figures: what each panel shows, and how matplotlib draws it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from tdistill.evaluation.metrics import METRICS, TEACHER
from tdistill.pages.lines import AT_MOST_POINTS, COLOURS, REFERENCE_COLOUR, colour, dash, thinned
from tdistill.pages.svg import INK, Line, Panel, Plot, set_scale, short
from tdistill.pages.tables import format_number, format_seconds
from tdistill.report.data import ReportData, Sparsity, StageCost, SystemResult, TrainingCurve
from tdistill.statistics.estimate import Estimate

SEED_ALPHA = 0.6  # of one training seed's line, where a system has several
QUALITY = ("teacher_nll", "forward_kl", "reverse_kl", "rouge_l", "student_mass")

# Metrics that the trainer may have logged → title. TD terms and the mass may carry the name of an objective before them, and
# ``_mean`` after them.
CURVES = {
    "loss": "loss",
    "td/reward": "reward r = Q(s,a) − γV(s′)",
    "td/v": "value V(s)",
    "td/q": "Q(s,a) of the token taken",
    "td/bellman_error": "squared Bellman error",
    "grad_norm": "gradient norm",
    "student_mass": "student's mass on A_p",
    "eval_forward_kl": "forward KL, held out",
    "eval_reverse_kl": "reverse KL, held out",
}
_PREFIXED = ("td/", "student_mass")


def all_plots(data: ReportData) -> dict[str, Plot]:
    """Return every figure that has something to show in ``data``, by key."""
    colours = palette(data)
    plots = (
        quality_plot(data.systems, colours),
        curves_plot(data.curves, colours),
        sparsity_plot(data.sparsity) if data.sparsity else None,
        time_plot(data.stages),
    )
    return {plot.key: plot for plot in plots if plot is not None}


def palette(data: ReportData) -> dict[str, str]:
    """Return name → colour for every system and every curve, the same in all figures; the teacher is grey."""
    names = dict.fromkeys([s.name for s in data.systems] + [c.name for c in data.curves])
    names.pop(TEACHER, None)
    return {TEACHER: REFERENCE_COLOUR} | {name: colour(i) for i, name in enumerate(names)}


def quality_plot(systems: Sequence[SystemResult], colours: Mapping[str, str]) -> Plot | None:
    """Plot the main metrics, one panel each: mean ± 2 standard errors of every system."""
    metrics = [m for m in QUALITY if sum(_known(s.metrics.get(m)) for s in systems) > 1]
    if not metrics:
        return None
    shown = [s for s in systems if any(_known(s.metrics.get(m)) for m in metrics)]
    panels = [_quality_panel(metric, shown, colours) for metric in metrics]
    caption = "Each dot is a system's mean, its bar ±2 standard errors. The dashed line is the teacher."
    return Plot("quality", caption, panels, columns=3, size=(330, 84 + 24 * len(shown)))


def _quality_panel(metric: str, systems: Sequence[SystemResult], colours: Mapping[str, str]) -> Panel:
    title, hint, direction = METRICS[metric]
    values = [s.metrics.get(metric) for s in systems]
    known = [(y, s.name, e) for y, (s, e) in enumerate(zip(systems, values, strict=True)) if e is not None and _known(e)]
    log = "nats" in hint and _spans(8, [v for _, _, e in known for v in (e.mean, e.mean - _two_stderr(e))])

    def draw(ax: Axes) -> None:
        for y, name, e in known:
            if name == TEACHER:
                ax.axvline(e.mean, color=REFERENCE_COLOUR, linestyle="--", linewidth=1)
            ax.errorbar(e.mean, y, xerr=_two_stderr(e), fmt="o", color=colours[name], markersize=6, capsize=3, linewidth=2)
        for y in set(range(len(systems))) - {y for y, _, _ in known}:
            ax.text(0.02, y, "–", transform=ax.get_yaxis_transform(), va="center", color=INK, alpha=0.6)
        ax.set_yticks(range(len(systems)), [short(s.name, 16) for s in systems])
        ax.set_ylim(len(systems) - 0.4, -0.6)
        better = f"{direction} is better" if direction else ""
        ax.set_title(title)
        ax.set_xlabel(", ".join(filter(None, (better, "log scale" if log else ""))))
        set_scale(ax, "x", log=log)
        ax.grid(axis="y", visible=False)

    listed = "; ".join(f"{name} {format_number(e.mean)}" for _, name, e in known)
    return Panel(f"{title} ({hint}): {listed}.", draw)


def curves_plot(curves: Sequence[TrainingCurve], colours: Mapping[str, str]) -> Plot | None:
    """Plot what was logged during training: one panel for each metric, one line for each student."""
    logged = {i: _logged(curve) for i, curve in enumerate(curves)}
    logged = {i: series for i, series in logged.items() if series}
    panels = [_curve_panel(title, series, curves, colours) for title, series in _panels_of(logged)]
    if not panels:
        return None
    dashes = _dashes(curves)
    lines = [Line(name, colours[name], dashes[name]) for name in dict.fromkeys(curves[i].name for i in logged)]
    caption = "What the trainer logged, by optimizer step."
    if any(curve.seed is not None for curve in curves):
        caption += " Every training seed is a pale line."
    if any(len(points) > AT_MOST_POINTS for series in logged.values() for points in series.values()):
        caption += f" A series of more than {AT_MOST_POINTS} records is shown as {AT_MOST_POINTS} means over stretches of equal length."
    return Plot("curves", caption, panels, columns=3, legend=lines)


def _dashes(curves: Sequence[TrainingCurve]) -> dict[str, str]:
    """Return system → dash, one for all its training seeds."""
    return {name: dash(i) for i, name in enumerate(dict.fromkeys(curve.name for curve in curves))}


def _told(curve: TrainingCurve) -> str:
    return curve.name if curve.seed is None else f"{curve.name} (seed {curve.seed})"


def _logged(curve: TrainingCurve) -> dict[str, np.ndarray]:
    """Return key → [n, 2] steps and finite values, for the keys that ``CURVES`` draws."""
    keys = {key for record in curve.records for key in record if any(_is_metric(key, base) for base in CURVES)}
    points = {key: [(r["step"], r[key]) for r in curve.records if _is_finite(r.get(key))] for key in sorted(keys)}
    return {key: np.asarray(sorted(pairs), dtype=float) for key, pairs in points.items() if pairs}


def _is_metric(key: str, base: str) -> bool:
    key = key.removesuffix("_mean")
    return key == base or (base.startswith(_PREFIXED) and key.endswith("/" + base))


def _panels_of(logged: Mapping[int, Mapping[str, np.ndarray]]) -> list[tuple[str, dict[int, np.ndarray]]]:
    """Return (title, curve → points) for each panel. Keys with different prefixes share a panel unless one curve has several of them."""
    panels = []
    for base, title in CURVES.items():
        keys = {i: [key for key in series if _is_metric(key, base)] for i, series in logged.items()}
        if max(map(len, keys.values()), default=0) <= 1:
            groups = {"": {i: logged[i][key] for i, found in keys.items() for key in found}}
        else:
            union = sorted({key for found in keys.values() for key in found})
            groups = {key: {i: logged[i][key] for i, found in keys.items() if key in found} for key in union}
        for key, series in groups.items():
            objective = key.removesuffix("_mean").removesuffix(base).rstrip("/")
            if series:
                panels.append((f"{title} ({short(objective, 14)})" if objective else title, series))
    return panels


def _curve_panel(title: str, series: Mapping[int, np.ndarray], curves: Sequence[TrainingCurve], colours: Mapping[str, str]) -> Panel:
    dashes = _dashes(curves)
    if title == CURVES["loss"] and len({curves[i].name for i in series}) > 1:
        title += " (not comparable between objectives)"
    log = _spans(100, np.concatenate([points[:, 1] for points in series.values()]))

    def draw(ax: Axes) -> None:
        for i, points in series.items():
            thin = thinned(points)
            marker = "o" if len(thin) <= 12 else ""
            name, alpha = curves[i].name, 1.0 if curves[i].seed is None else SEED_ALPHA
            ax.plot(*thin.T, dashes[name], color=colours[name], alpha=alpha, linewidth=1.6, marker=marker, markersize=4)
        ax.set_title(f"{title} (log scale)" if log else title)
        ax.set_xlabel("step")
        set_scale(ax, "y", log=log)
        set_scale(ax, "x")

    ends = "; ".join(f"{_told(curves[i])} from {format_number(p[0, 1])} to {format_number(p[-1, 1])}" for i, p in series.items())
    return Panel(f"{title} by step: {ends}.", draw)


def sparsity_plot(sparsity: Sparsity) -> Plot | None:
    """Plot the probability mass of the top k tokens, and the number of candidates for each p."""
    panels = [_mass_panel(sparsity.top_k_mass)] if sparsity.top_k_mass else []
    panels += [_sizes_panel(p, np.asarray(sizes)) for p, sizes in sorted(sparsity.sizes.items()) if len(sizes)]
    if not panels:
        return None
    columns = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    caption = "How concentrated the teacher is: the mean probability of its k most probable tokens, and the number of candidates |A_p|."
    return Plot("sparsity", caption, panels, columns)


def _mass_panel(mass: Mapping[int, float]) -> Panel:
    ks = sorted(mass)

    def draw(ax: Axes) -> None:
        ax.plot(ks, [mass[k] for k in ks], "o-", color=COLOURS[0], linewidth=1.6, markersize=4)
        ax.set_title("mass of the top k tokens")
        ax.set_xlabel("k, log scale")
        set_scale(ax, "x", log=True)
        ax.set_ylim(0, 1.02)
        set_scale(ax, "y")

    listed = "; ".join(f"k = {k}: {mass[k]:.3f}" for k in ks)
    return Panel(f"Mean mass of the teacher's top k tokens: {listed}.", draw)


def _sizes_panel(p: float, sizes: np.ndarray) -> Panel:
    edges = 2.0 ** np.arange(math.ceil(math.log2(max(int(sizes.max()), 1) + 1)) + 1)  # [1, 2), [2, 4), [4, 8) …
    shares = np.histogram(np.maximum(sizes, 1), edges)[0] / len(sizes) * 100
    median, p99 = (int(q) for q in np.quantile(sizes, [0.5, 0.99], method="inverted_cdf"))

    def draw(ax: Axes) -> None:
        ax.bar(edges[:-1], shares, np.diff(edges), align="edge", color=COLOURS[0], edgecolor=INK, linewidth=0.4)
        for value, style, name in ((median, "-", "median"), (p99, "--", "p99")):
            ax.axvline(value, color=COLOURS[1], linestyle=style, linewidth=1.6, label=f"{name} {value:,}")
        ax.legend(frameon=False, loc="upper right", labelcolor=INK, handlelength=1.6)
        ax.set_ylim(0, shares.max() * 1.3)
        ax.set_title(f"|A_p| at p = {p:g}, % of states")
        ax.set_xlabel("candidates, log scale")
        set_scale(ax, "x", log=True)
        set_scale(ax, "y")

    return Panel(f"Number of candidates at p = {p:g}: median {median:,}, 99th percentile {p99:,}.", draw)


def time_plot(stages: Sequence[StageCost]) -> Plot | None:
    """Plot the time of every stage as horizontal bars."""
    timed = [s for s in stages if math.isfinite(s.seconds) and s.seconds > 0]
    if not timed:
        return None
    longest = max(s.seconds for s in timed)
    unit, name = next(((u, n) for u, n in ((3600, "hours"), (60, "minutes")) if longest >= 2 * u), (1, "seconds"))

    def draw(ax: Axes) -> None:
        bars = ax.barh(range(len(timed)), [s.seconds / unit for s in timed], color=COLOURS[0], height=0.62)
        ax.bar_label(bars, [format_seconds(s.seconds) for s in timed], padding=4, color=INK)
        ax.set_yticks(range(len(timed)), [short(s.name, 18) for s in timed])
        ax.set_ylim(len(timed) - 0.4, -0.6)
        ax.set_xmargin(0.28)
        ax.set_xlabel(name)
        set_scale(ax, "x")
        ax.grid(axis="y", visible=False)

    listed = "; ".join(f"{s.name} {format_seconds(s.seconds)}" for s in timed)
    return Plot("time", "Time of every stage.", [Panel(f"Time by stage: {listed}.", draw)], 1, (340, 84 + 26 * len(timed)))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _known(estimate: Estimate | None) -> bool:
    return estimate is not None and math.isfinite(estimate.mean)


def _two_stderr(estimate: Estimate) -> float:
    return 2 * estimate.stderr if math.isfinite(estimate.stderr) else 0.0


def _spans(ratio: float, values: Sequence[float] | np.ndarray) -> bool:
    """Tell whether ``values`` are positive and their largest is more than ``ratio`` times their smallest: they need a logarithmic axis."""
    return min(values) > 0 and max(values) > ratio * min(values)
