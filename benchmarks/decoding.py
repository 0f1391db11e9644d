"""The same students at several decoding temperatures: what is left of a difference at equal variety of the texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from pooled_methods import TITLES, Method, methods, show

from tdistill.compare.pool import pooled
from tdistill.report.plots import COLOURS, DASHES
from tdistill.report.svg import Line, Panel, Plot, set_scale

RESAMPLES = 2000
UNREACHED = 0.05  # share of resamples that may lie beyond the temperatures measured


def decoding_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every method at several decoding temperatures."""
    found = {t: {m.name: m for m in methods(own)} for t, own in _by_temperature(rows).items()}
    shown = ("teacher_nll", "rouge_l", "distinct_2")
    head = ["method", "seeds", *(f"{TITLES[m][0]}, T = {t:g}" for m in shown for t in found)]
    lines = [head, ["---"] * len(head)]
    for name, method in found[min(found)].items():
        lines.append([f"`{name}`", str(len(method.finished)), *(show(found[t][name], m) for m in shown for t in found)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def equal_variety_table(rows: Sequence[dict[str, Any]], levels: Sequence[float], baseline: str) -> str:
    """Every method at the decoding temperature, between those measured, at which its texts have the same distinct-2.

    ± and p are of a bootstrap over prompts, the same resamples for all methods; a prompt's value is the mean over seeds.
    """
    shown = ("teacher_nll", "rouge_l")
    tables = _prompt_tables(rows, ("distinct_2", *shown))
    count = next(iter(tables.values())).shape[-1]
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    draws = np.concatenate([np.arange(count)[None], draws])  # the first is the sample itself
    head = ["method", *(f"{TITLES[m][0]} at distinct-2 {x:g}, Δ (p)" for x in levels for m in shown)]
    lines = [head, ["---"] * len(head)]
    found = {name: [_at_level(table[:, :, draws].mean(-1), x) for x in levels] for name, table in tables.items()}
    for name in sorted(found, key=lambda n: np.nan_to_num(found[n][0][0, 0], nan=np.inf)):
        cells = [f"`{name}`"]
        for values, base in zip(found[name], found[baseline], strict=True):
            cells += [_resampled(values[i], None if name == baseline else values[i] - base[i], TITLES[m][1]) for i, m in enumerate(shown)]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _prompt_tables(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Method → [temperature, metric, prompt], means over its seeds, on the prompts that all have."""
    by_temperature = {t: methods(own) for t, own in _by_temperature(rows).items()}
    scored = [s[m] for own in by_temperature.values() for method in own for s in method.finished.values() for m in metrics]
    prompts = sorted(set.intersection(*({p for p, x in s.items() if x == x} for s in scored)))
    tables: dict[str, list[np.ndarray]] = {}
    for own in by_temperature.values():
        for method in own:
            per_seed = [[[scores[m][p] for p in prompts] for m in metrics] for scores in method.finished.values()]
            tables.setdefault(method.name, []).append(np.mean(per_seed, axis=0))
    return {name: np.stack(parts) for name, parts in tables.items()}


def _at_level(means: np.ndarray, level: float) -> np.ndarray:
    """[metric, draw] from [temperature, 1 + metric, draw]: interpolated where the first of them is ``level``; NaN beyond what was measured."""
    found = np.full((means.shape[1] - 1, means.shape[2]), np.nan)
    for draw in range(means.shape[2]):
        order = np.argsort(means[:, 0, draw])
        for i in range(len(found)):
            found[i, draw] = np.interp(level, means[order, 0, draw], means[order, 1 + i, draw], left=np.nan, right=np.nan)
    return found


def _resampled(values: np.ndarray, differences: np.ndarray | None, digits: int) -> str:
    if not _reached(values):
        return "–"
    text = f"{values[0]:.{digits}f} ± {np.nanstd(values[1:], ddof=1):.{digits}f}"
    if differences is None or not _reached(differences):
        return text
    below = np.nanmean(differences[1:] < 0)
    p = min(1.0, 2 * max(min(below, 1 - below), 1 / RESAMPLES))
    return f"{text}, {differences[0]:+.{digits}f} ({p:.3f})".replace("-", "−").replace("(0.", "(.")


def _reached(draws: np.ndarray) -> bool:
    """The sample and nearly all resamples have a value: near the edge of what was measured, those that have are a biased choice."""
    return not np.isnan(draws[0]) and np.isnan(draws).mean() <= UNREACHED


def frontier_plot(key: str, caption: str, rows: Sequence[dict[str, Any]], metrics: Sequence[str] = ("teacher_nll", "rouge_l")) -> Plot:
    """Quality against variety, a line a method through its decoding temperatures: one above another is better at equal variety."""
    found: dict[str, dict[float, Method]] = {}
    for temperature, own in _by_temperature(rows).items():
        for method in methods(own):
            found.setdefault(method.name, {})[temperature] = method
    # More methods than colours: the second round is dashed.
    styles = {name: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS)]) for i, name in enumerate(found)}
    panels = [_frontier_panel(metric, found, styles) for metric in metrics]
    legend = [Line(name, *style) for name, style in styles.items()]
    return Plot(key, caption, panels, columns=len(metrics), size=(440, 320), legend=legend)


def _frontier_panel(metric: str, found: Mapping[str, Mapping[float, Method]], styles: Mapping[str, tuple[str, str]]) -> Panel:
    points = {
        name: [(pooled(m.of("distinct_2")).mean, pooled(m.of(metric)).mean, t) for t, m in sorted(found[name].items())] for name in styles
    }

    def draw(ax: Axes) -> None:
        for name, own in points.items():
            colour, dash = styles[name]
            ax.plot([x for x, _, _ in own], [y for _, y, _ in own], marker="o", linestyle=dash, color=colour, markersize=5, linewidth=1.6)
        ax.set_xlabel(TITLES["distinct_2"][0])
        ax.set_title(TITLES[metric][0])
        set_scale(ax, "x")
        set_scale(ax, "y")

    digits = TITLES[metric][1]
    told = "; ".join(f"{n}: " + ", ".join(f"T {t:g} {x:.3f} {y:.{digits}f}" for x, y, t in own) for n, own in points.items())
    return Panel(f"{TITLES[metric][0]} against distinct-2. {told}.", draw)


def _by_temperature(rows: Sequence[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    found: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["recipe"]["evaluation"]["temperature"], []).append(row)
    return dict(sorted(found.items()))
