"""Draw and tabulate what looking ahead could gain at most: the rows of `lookahead.py`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from doc_tables import table
from matplotlib.axes import Axes

from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import Line, Panel, Plot, set_scale

GAMMAS = (0.5, 0.7, 0.9, 0.99)


def gains_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the gain in a state, by student, kind of return and γ."""
    return _by_gamma(rows, lambda g: f"{g['gain']['mean']:.2f} ± {g['gain']['stderr']:.2f}")


def noise_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the variance of one return, by student, kind of return and γ."""
    return _by_gamma(rows, lambda g: f"{g['noise_variance']:.{0 if g['noise_variance'] >= 10 else 2}f}")


def _by_gamma(rows: Sequence[dict[str, Any]], show: Callable[[dict[str, Any]], str]) -> str:
    lines = []
    for row in rows:
        for kind in sorted({g["return"] for g in row["gains"]}):
            found = {g["gamma"]: show(g) for g in row["gains"] if g["return"] == kind}
            lines.append([f"`{row['student'].rpartition('-')[0]}`", kind, *(found[gamma] for gamma in GAMMAS)])
    return table(["student", "return", *(f"γ = {gamma:g}" for gamma in GAMMAS)], lines)


def lookahead_plot(rows: Sequence[dict[str, Any]]) -> Plot:
    """Plot the gain by γ, with one panel for each student and one line for each kind of return."""
    kinds = dict(zip(("divergence", "divergence, centred"), COLOURS, strict=False))
    panels = [_gain_panel(row, kinds) for row in rows]
    caption = "What a perfect critic could save in a state, beside what the student has to pay there (dotted)."
    legend = [Line(kind, colour, "-") for kind, colour in kinds.items()]
    return Plot("lookahead", caption, panels, columns=2, size=(420, 260), legend=legend)


def _gain_panel(row: dict[str, Any], kinds: Mapping[str, str]) -> Panel:
    lines = {kind: sorted((g["gamma"], g["gain"]) for g in row["gains"] if g["return"] == kind) for kind in kinds}
    places = range(len(next(iter(lines.values()))))

    def draw(ax: Axes) -> None:
        for kind, points in lines.items():
            means, errors = [g["mean"] for _, g in points], [2 * g["stderr"] for _, g in points]
            ax.errorbar(places, means, yerr=errors, fmt="o-", color=kinds[kind], markersize=5, capsize=3, linewidth=1.6)
        ax.axhline(row["kl"]["mean"], color=COLOURS[0], linestyle=":", linewidth=1.2)
        ax.set_xticks(places, [f"{gamma:g}" for gamma, _ in next(iter(lines.values()))])
        ax.set_ylim(0, 1.0)
        ax.set_xlabel("γ")
        ax.set_ylabel("nats a state")
        ax.set_title(row["student"].rpartition("-")[0])
        set_scale(ax, "y")

    told = "; ".join(f"{kind}: " + ", ".join(f"γ={gamma:g} {g['mean']:.2f}" for gamma, g in points) for kind, points in lines.items())
    return Panel(f"{row['student']}, KL(q‖p) {row['kl']['mean']:.2f}: {told}.", draw)
