"""Plot the figures of the theory report."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tdistill.pages.lines import COLOURS, lines_of
from tdistill.pages.svg import INK, Line, Panel, Plot, set_scale
from tdistill.pages.tables import format_number

Rows = list[dict[str, Any]]
Series = dict[str, tuple[list[float], list[float]]]  # name → x, y

STAGES = {
    "kappa": "κ(p)",
    "kappa_kept": "κ(min kept mass)",
    "kappa_horizon": "… × real horizon",
    "gap_projected": "Q* − Q of proj π*",
    "gap_restricted": "Q* − Q*_p",
}
LOOSENESS_P = 0.8
COMPOUNDING = {
    "cloning and IQ-Learn": ("forward_kl", "reverse_kl", "iq_learn α=1", "iq_learn α=10", "iq_learn α=10 γ=0", "iq_learn α=100"),
    "other TD, teacher's text": ("reverse_kl", "csil", "q_lambda", "path_consistency", "actor_critic"),
    "own text, and exact": (
        "reverse_kl",
        "reverse_kl, own text",
        "path_consistency, own text",
        "actor_critic, own text",
        "exact, states only",
        "exact, looking ahead",
    ),
}


def all_plots(data: dict[str, Rows]) -> dict[str, Plot]:
    """Return every figure, by key."""
    plots = [
        tightness_plot(data["propositions"]),
        gap_plot(data["cuts"]),
        looseness_plot(data["cuts"]),
        kept_plot(data["cuts"]),
        bias_plot(data["bias"]),
        compounding_plot(data["compounding"]),
    ]
    return {plot.key: plot for plot in plots}


@dataclass(frozen=True)
class Axis:
    """Describe an axis: its label, and whether its scale is logarithmic."""

    label: str
    log: bool = False


def _line_panel(title: str, series: Series, lines: dict[str, Line], x: Axis, y: Axis) -> Panel:
    def draw(ax: Axes) -> None:
        for name, (xs, ys) in series.items():
            ax.plot(xs, ys, lines[name].dash, color=lines[name].colour, linewidth=1.6, marker="o", markersize=3)
        ax.set_title(title)
        ax.set_xlabel(x.label)
        ax.set_ylabel(y.label)
        set_scale(ax, "x", log=x.log)
        set_scale(ax, "y", log=y.log)

    ends = "; ".join(f"{name} from {format_number(ys[0])} to {format_number(ys[-1])}" for name, (_, ys) in series.items())
    return Panel(f"{title}, {y.label} by {x.label}: {ends}.", draw)


def tightness_plot(rows: Rows) -> Plot:
    """Plot a histogram of gap/κ over the random instances, for A_p and for capped sets. The adaptive rule is left out: it equals top-p."""
    panels = [_histogram(row) for row in rows if row["rule"] != "adaptive"]
    caption = "How much of the bound is used: (Q* − Q*_p)/κ over the random instances. 100 % is a bound attained."
    return Plot("tightness", caption, panels, columns=2)


def _histogram(row: dict[str, Any]) -> Panel:
    shares = np.asarray(row["histogram"]) / sum(row["histogram"]) * 100
    edges = np.linspace(0, 100, len(shares) + 1)
    median = row["gap_restricted/kappa_0.5"] * 100

    def draw(ax: Axes) -> None:
        ax.bar(edges[:-1], shares, np.diff(edges), align="edge", color=COLOURS[0], edgecolor=INK, linewidth=0.4)
        ax.axvline(median, color=COLOURS[1], linewidth=1.6, label=f"median {median:.0f} %")
        ax.legend(frameon=False, labelcolor=INK, handlelength=1.6)
        ax.set_ylim(0, shares.max() * 1.25)
        ax.set_title({"top_p": "A_p, κ(p)", "capped": "capped, κ(min kept mass)"}[row["rule"]])
        ax.set_xlabel("gap in % of κ")
        ax.set_ylabel("% of instances")
        set_scale(ax, "x")
        set_scale(ax, "y")

    return Panel(f"{row['rule']}: the median instance uses {median:.0f} % of the bound.", draw)


def _of(rows: Rows, **key: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[k] == v for k, v in key.items())]


def _values(rows: Rows, key: str) -> list[float]:
    return [row[key] for row in rows]


def gap_plot(rows: Rows) -> Plot:
    """Plot the measured gap against κ(p), over p, one panel per γ."""
    keys = {"κ(p)": "kappa", "largest Q* − Q*_p": "gap_restricted_max", "median Q* − Q*_p": "gap_restricted"}
    lines = lines_of(list(keys))
    panels = []
    for gamma in sorted({row["gamma"] for row in rows}):
        found = _of(rows, rule="top_p", gamma=gamma)
        series = {name: (_values(found, "parameter"), _values(found, key)) for name, key in keys.items()}
        panels.append(_line_panel(f"γ = {gamma:g}", series, lines, Axis("p"), Axis("nats, log scale", log=True)))
    caption = "What the cut costs, and what the bound allows it to cost: random MDPs of 8 states and 32 actions."
    return Plot("gap", caption, panels, columns=3, legend=list(lines.values()))


def looseness_plot(rows: Rows) -> Plot:
    """Plot the bars from κ(p) to the measured gap: each one drops one more assumption of the bound."""
    panels = [_stages(_of(rows, rule="top_p", parameter=LOOSENESS_P, gamma=g)[0]) for g in sorted({row["gamma"] for row in rows})]
    caption = (
        f"Why κ is loose, at p = {LOOSENESS_P:g} (medians over MDPs). Each bar gives up one assumption of the bound: that the worst state "
        "keeps no more than p; that the episode never ends; that every state on the way is the worst one (what is left is an identity: "
        "the expected discounted −log kept mass); and that the policy is not optimised anew on A_p."
    )
    return Plot("looseness", caption, panels, columns=3, size=(330, 190))


def _stages(row: dict[str, Any]) -> Panel:
    values = [row[key] for key in STAGES]

    def draw(ax: Axes) -> None:
        bars = ax.barh(range(len(values)), values, color=[COLOURS[1]] * 3 + [COLOURS[0]] * 2, height=0.62)
        ax.bar_label(bars, [format_number(v) for v in values], padding=4, color=INK)
        ax.set_yticks(range(len(values)), list(STAGES.values()))
        ax.set_ylim(len(values) - 0.4, -0.6)
        ax.set_xmargin(0.28)
        ax.set_title(f"γ = {row['gamma']:g}")
        ax.set_xlabel("nats")
        set_scale(ax, "x")
        ax.grid(axis="y", visible=False)

    return Panel(f"γ = {row['gamma']:g}: " + "; ".join(f"{n} {format_number(v)}" for n, v in zip(STAGES.values(), values, strict=True)), draw)


def kept_plot(rows: Rows) -> Plot:
    """Plot value lost against actions kept, by top-p and by top-k."""
    lines = lines_of(["top_p", "top_k"])
    axes = (Axis("actions kept of 32, log scale", log=True), Axis("Q* − Q*_p, nats, log scale", log=True))
    panels = []
    for gamma in sorted({row["gamma"] for row in rows}):
        found = {rule: _of(rows, rule=rule, gamma=gamma) for rule in lines}
        series = {rule: (_values(r, "actions_kept"), _values(r, "gap_restricted")) for rule, r in found.items()}
        panels.append(_line_panel(f"γ = {gamma:g}", series, lines, *axes))
    caption = "Value lost against actions kept on average: a nucleus spends its actions where the policy is uncertain (medians over MDPs)."
    return Plot("kept", caption, panels, columns=3, legend=list(lines.values()))


def bias_plot(rows: Rows) -> Plot:
    """Plot the distance of top-p IQ-Learn's exact solution from the expert, by α."""
    gammas = sorted({row["gamma"] for row in rows})
    lines = lines_of([f"γ = {g:g}" for g in gammas])
    panels = []
    for p in sorted({row["p"] for row in rows}, reverse=True):
        found = {f"γ = {g:g}": sorted(_of(rows, p=p, gamma=g), key=lambda r: r["alpha"]) for g in gammas}
        series = {name: (_values(r, "alpha"), _values(r, "tv")) for name, r in found.items()}
        panels.append(_line_panel(f"p = {p:g}", series, lines, Axis("α, log scale", log=True), Axis("total variation, log scale", log=True)))
    caption = "The bias of χ² at a finite α: the exact minimiser's distance from the expert, which falls as 1/α."
    return Plot("bias", caption, panels, columns=2, legend=list(lines.values()))


def compounding_plot(rows: Rows) -> Plot:
    """Plot regret per token by horizon: a level line is an error that does not compound."""
    present = {row["method"] for row in rows}
    lines = lines_of([n for n in dict.fromkeys(name for group in COMPOUNDING.values() for name in group) if n in present])
    top = max(row["regret"] / row["horizon"] for row in rows)
    low = min(row["regret"] / row["horizon"] for row in rows)
    panels = []
    for title, names in COMPOUNDING.items():
        found = {n: sorted(_of(rows, method=n), key=lambda r: r["horizon"]) for n in names if n in present}
        series = {n: (_values(r, "horizon"), [x["regret"] / x["horizon"] for x in r]) for n, r in found.items()}
        panel = _line_panel(title, series, lines, Axis("horizon H, tokens", log=True), Axis("regret/H, nats", log=True))
        panels.append(_same_range(panel, low, top))
    caption = (
        "Compounding errors: KL(student‖teacher) of whole texts of H tokens, per token, on the student's own text (exact; mean over seeds). "
        "Level lines do not compound. Log scales, the same in all panels."
    )
    return Plot("compounding", caption, panels, columns=3, size=(330, 280), legend=list(lines.values()))


def _same_range(panel: Panel, low: float, top: float) -> Panel:
    def draw(ax: Axes) -> None:
        panel.draw(ax)
        ax.set_ylim(low * 0.9, top * math.sqrt(1.2))

    return Panel(panel.description, draw)
