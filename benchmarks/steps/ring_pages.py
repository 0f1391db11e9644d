"""Draw and tabulate the rows of World 0. Every number is exact for its student, so what varies is the training seed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from doc_tables import estimate, number, p_text, table
from matplotlib.axes import Axes

from tdistill.pages.lines import DASHES, lines_of
from tdistill.pages.svg import Panel, Plot, set_scale
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import compared, pooled

Rows = Sequence[Mapping[str, Any]]
CLONING = ("sft_continued", "sft_long", "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_rkl", "tvd", "alpha_beta")
OWN_CLONING = ("forward_kl_own", "reverse_kl_own", "jsd_own")
AHEAD = ("actor_critic", "actor_critic_own")
NAMES = {
    "sft_continued": "SFT continued",
    "jsd": "jsd, teacher's text",
    "reverse_kl_own": "reverse KL, own text",
    "rejection": "rejection sampling",
    "actor_critic": "actor_critic, teacher's text",
    "actor_critic_own": "actor_critic, own text",
}


def of_sweep(rows: Rows, sweep: str) -> list[Mapping[str, Any]]:
    """Return the rows of a sweep, without those of the SFT students."""
    return [row for row in rows if row["sweep"] == sweep and row["method"] != "sft"]


def by_steps(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows of the sweep over the number of steps, and those of its methods in the main setting."""
    swept = of_sweep(rows, "steps")
    methods = {row["method"] for row in swept}
    return swept + [row for row in of_sweep(rows, "main") if row["method"] in methods]


def long_by_share(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows of long training at each share of the easy way, without those of `jsd`: a table has six columns."""
    return [row for row in of_sweep(rows, "long") + of_sweep(rows, "long_shares") if row["method"] != "jsd"]


def read(row: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path such as ``setting.ring.steps``, as ``ring.yaml`` writes it."""
    for key in path.replace("method.", "method_settings.", 1).split("."):
        row = row[key]
    return row


def by_seed(rows: Rows, metric: str) -> dict[Any, dict[str, float]]:
    """Return seed → scores, as the functions of ``tdistill.statistics`` take them. A seed has one exact score."""
    return {row["seed"]: {"exact": float(row[metric])} for row in rows}


def mean(rows: Rows, metric: str) -> Estimate:
    """Return the mean over seeds with its standard error."""
    return pooled(by_seed(rows, metric))


def accuracy_plot(rows: Rows, key: str, methods: Sequence[str], caption: str) -> Plot:
    """Plot accuracy against the number of steps, one line a method: greedy on the left, at temperature 1 on the right."""
    found = {name: [row for row in rows if row["method"] == name] for name in methods}
    panels = [
        _accuracy_panel(found, metric, title) for metric, title in (("greedy", "greedy accuracy"), ("sampled", "accuracy at temperature 1"))
    ]
    return Plot(key, caption, panels, columns=2, size=(420, 280), legend=list(_lines(methods).values()))


def _lines(methods: Sequence[str]) -> dict[str, Any]:
    lines = lines_of([NAMES.get(name, name) for name in methods])
    return {name: lines[NAMES.get(name, name)] for name in methods}


def _accuracy_panel(found: Mapping[str, Rows], metric: str, title: str) -> Panel:
    curves = {name: _over(rows, "setting.ring.steps", metric) for name, rows in found.items()}
    places = sorted({x for points in curves.values() for x, _ in points})
    lines = _lines(list(found))

    def draw(ax: Axes) -> None:
        for i, (name, points) in enumerate(curves.items()):
            shift = 1.0 + 0.02 * (i - len(curves) / 2)  # so that equal lines are both seen
            ax.errorbar(
                [x * shift for x, _ in points],
                [e.mean for _, e in points],
                yerr=[2 * e.stderr if e.stderr == e.stderr else 0.0 for _, e in points],
                fmt="o" + DASHES[0 if name in AHEAD or name == "rejection" else 1],
                color=lines[name].colour,
                markersize=4.5,
                capsize=3,
                linewidth=1.7,
            )
        ax.set_xscale("log", base=2)
        ax.set_xticks(places, [str(x) for x in places])
        ax.set_ylim(-0.03, 1.05)
        ax.set_xlabel("number of steps H")
        ax.set_title(title)
        set_scale(ax, "y")

    told = "; ".join(f"{name}: " + ", ".join(f"H = {x} {e.mean:.2f}" for x, e in points) for name, points in curves.items())
    return Panel(f"{title}: {told}.", draw)


def _over(rows: Rows, path: str, metric: str) -> list[tuple[Any, Estimate]]:
    values = sorted({read(row, path) for row in rows})
    return [(value, mean([row for row in rows if read(row, path) == value], metric)) for value in values]


def map_plot(rows: Rows) -> Plot:
    """Draw the gain of looking ahead over the hard way's difficulty and the student's size, beside the accuracy of both sides."""
    own = of_sweep(rows, "map")
    keys = sorted({read(row, "setting.ring.keys") for row in own})
    widths = sorted({read(row, "setting.width") for row in own})
    copied = _grid(own, ("jsd", "reverse_kl_own"), keys, widths)
    ahead = _grid(own, ("actor_critic_own",), keys, widths)
    panels = [
        _map_panel("gain of looking ahead", ahead - copied, keys, widths),
        _map_panel("cloning: jsd or reverse KL, the better one", copied, keys, widths),
        _map_panel("looking ahead: actor_critic, own text", ahead, keys, widths),
    ]
    return Plot("steps-map", "Greedy accuracy in World 0 at H = 8, mean of three seeds.", panels, columns=3, size=(330, 260))


def _grid(rows: Rows, methods: Sequence[str], keys: Sequence[int], widths: Sequence[int]) -> np.ndarray:
    def cell(method: str, k: int, w: int) -> float:
        own = [row for row in rows if (row["method"], read(row, "setting.ring.keys"), read(row, "setting.width")) == (method, k, w)]
        return mean(own, "greedy").mean

    return np.array([[max(cell(m, k, w) for m in methods) for w in widths] for k in keys])


def _map_panel(title: str, values: np.ndarray, keys: Sequence[int], widths: Sequence[int]) -> Panel:
    def draw(ax: Axes) -> None:
        ax.pcolormesh(np.arange(len(widths) + 1), np.arange(len(keys) + 1), values, cmap="Blues", vmin=0.0, vmax=1.0, edgecolors="white")
        for (i, j), value in np.ndenumerate(values):
            ax.text(j + 0.5, i + 0.5, number(value, 2), ha="center", va="center", color="white" if value > 0.5 else "#333333")
        ax.set_xticks(np.arange(len(widths)) + 0.5, [str(w) for w in widths])
        ax.set_yticks(np.arange(len(keys)) + 0.5, [str(k) for k in keys])
        ax.set_xlabel("width of the student")
        ax.set_ylabel("permutations (difficulty)")
        ax.set_title(title)

    told = [(k, ", ".join(f"width {w} {v:.2f}" for w, v in zip(widths, row, strict=True))) for k, row in zip(keys, values, strict=True)]
    return Panel(f"{title}. " + "; ".join(f"{k} permutations: {text}" for k, text in told) + ".", draw)


def methods_table(rows: Rows, methods: Sequence[str] | None = None, sweep: str = "main") -> str:
    """Return a table of methods, the best greedy accuracy first: accuracy, KL of whole texts above the optimum, share of the easy way."""
    own = of_sweep(rows, sweep)
    found = {name: [row for row in own if row["method"] == name] for name in dict.fromkeys(row["method"] for row in own)}
    ordered = sorted(found, key=lambda n: (-mean(found[n], "greedy").mean, -mean(found[n], "sampled").mean, mean(found[n], "kl").mean))
    lines = []
    for name in ordered:
        if methods is None or name in methods:
            columns = [(metric, digits) for metric, digits in (("greedy", 2), ("sampled", 2), ("kl", 1), ("easy_share", 2))]
            cells = [estimate(mean(found[name], m).mean, mean(found[name], m).stderr, d) for m, d in columns]
            lines.append([f"`{name}`", *cells, f"{mean(found[name], 'seconds').mean:.0f}"])
    return table(["method", "greedy accuracy ↑", "accuracy at T = 1 ↑", "KL of a text ↓", "share of the easy way", "seconds"], lines)


def difference_table(rows: Rows, ahead: Sequence[str]) -> str:
    """Return a table of the difference in accuracy from the best cloning loss, and from rejection sampling."""
    own = of_sweep(rows, "main")
    of = {name: [row for row in own if row["method"] == name] for name in dict.fromkeys(row["method"] for row in own)}
    best = max((n for n in (*CLONING, *OWN_CLONING) if n in of), key=lambda n: mean(of[n], "greedy").mean)
    lines = []
    for name in ahead:
        cells = []
        for other in (best, "rejection"):
            found = compared(by_seed(of[name], "sampled"), by_seed(of[other], "sampled"))
            assert found is not None
            cells.append(f"{estimate(found.difference.mean, found.difference.stderr, 2, signed=True)} ({p_text(found.p_value)})")
        lines.append([f"`{name}`", *cells])
    return table(["method", f"accuracy at T = 1: against `{best}` (p)", "against `rejection` (p)"], lines)


def knob_table(rows: Rows, path: str, title: str, metric: str = "greedy", digits: int = 2) -> str:
    """Return a table with a line for each value of a knob and a column for each method."""
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "sft_continued"]  # jsd is better: six columns
    values = dict.fromkeys(read(row, path) for row in rows)
    lines = []
    for value in sorted(values) if all(isinstance(v, int | float) for v in values) else values:
        cells = [[row for row in rows if row["method"] == name and read(row, path) == value] for name in methods]
        shown = [mean(cell, metric) for cell in cells]
        lines.append([_text(value), *(estimate(e.mean, e.stderr, digits) for e in shown)])
    return table([title, *(f"`{name}`" for name in methods)], lines)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower()
    return f"{value:g}".replace("inf", "∞")


def time_table(rows: Rows, methods: Sequence[str]) -> str:
    """Return a table of the steps, tokens and seconds after which a method has 90 % of its own last accuracy at T = 1."""
    own, lines = of_sweep(rows, "main"), []
    for name in methods:
        chosen = [row for row in own if row["method"] == name]
        reached = [_reached(row) for row in chosen]
        tokens = chosen[0]["setting"]["batch"] * 2 * chosen[0]["setting"]["ring"]["steps"]
        steps = float(np.mean(reached))
        share = steps / chosen[0]["curve"][-1]["step"]
        lines.append([f"`{name}`", f"{steps:.0f}", f"{steps * tokens / 1e3:.0f}k", f"{share * mean(chosen, 'seconds').mean:.1f}"])
    return table(["method", "steps", "tokens", "seconds"], lines)


def _reached(row: Mapping[str, Any]) -> int:
    wanted = 0.9 * row["curve"][-1]["sampled"]
    return next(point["step"] for point in row["curve"] if point["sampled"] >= wanted)


SHARE = ("setting.ring.easy_share", "teacher's share of the easy way")
# Metric → sweep → the knob, and its name in the table.
KNOBS: dict[str, dict[str, tuple[str, str]]] = {
    "greedy": {
        "map_wide": ("setting.ring.keys", "permutations"),
        "easy_share": SHARE,
        "easy_share_slow": SHARE,
        "p": ("setting.top_p", "p"),
        "p_long": ("setting.top_p", "p"),
        "p_share_0.3": ("setting.top_p", "p"),
        "amount": ("setting.texts", "different texts of the teacher"),
    },
    "sampled": {
        "gamma": ("method.objective.gamma", "γ"),
        "lambda": ("method.objective.lambda_", "λ"),
        "rho": ("method.objective.rho_max", "largest ratio ρ"),
        "center": ("method.objective.center", "`center`"),
        "text": ("method.text", "text"),
        "detach": ("method.detach", "`detach`"),
        "minillm": ("method.objective.length_normalization", "`length_normalization`"),
    },
}


def tables(read_rows: Callable[[], Rows]) -> dict[str, Callable[[], str]]:
    """Return name → table for the pages of the documentation."""
    few = ("actor_critic_own", "mean_actor_critic_own", "actor_critic", "rejection", "reverse_kl_own", "jsd")
    made: dict[str, Callable[[], str]] = {
        "steps-ring": lambda: methods_table(read_rows(), few),
        "steps-ring-all": lambda: methods_table(read_rows()),
        "steps-ring-differences": lambda: difference_table(read_rows(), ("actor_critic_own", "mean_actor_critic_own", "actor_critic")),
        "steps-ring-time": lambda: time_table(read_rows(), few[:4]),
        "steps-ring-H": lambda: knob_table(by_steps(read_rows()), "setting.ring.steps", "H"),
        "steps-ring-long": lambda: methods_table(read_rows(), sweep="long"),
        "steps-ring-long-shares": lambda: knob_table(long_by_share(read_rows()), *SHARE),
        "steps-ring-long-shares-T1": lambda: knob_table(long_by_share(read_rows()), *SHARE, "sampled"),
        "steps-ring-H-T1": lambda: knob_table(by_steps(read_rows()), "setting.ring.steps", "H", "sampled"),
    }
    for metric, knobs in KNOBS.items():
        for sweep, (path, title) in knobs.items():
            made[f"steps-ring-{sweep}"] = partial(_swept, read_rows, sweep, path, title, metric)
    return made


def _swept(read_rows: Callable[[], Rows], sweep: str, path: str, title: str, metric: str) -> str:
    return knob_table(of_sweep(read_rows(), sweep), path, title, metric)


def figures(read_rows: Callable[[], Rows]) -> dict[str, Callable[[], Plot]]:
    """Return name → figure for the pages of the documentation."""
    caption = "World 0: accuracy against the number of steps, ten seeds: mean ± 2 standard errors."
    return {
        "steps-accuracy": lambda: accuracy_plot(by_steps(read_rows()), "steps-accuracy", list(NAMES), caption),
        "steps-map": lambda: map_plot(read_rows()),
    }
