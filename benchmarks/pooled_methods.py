"""Pool all seeds of a method: its estimates, its differences, and the tables and figures that are made of them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doc_tables import MISSING, estimate, number, p_text, table
from matplotlib.axes import Axes

from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import Line, Panel, Plot, set_scale
from tdistill.statistics.pooling import ScoresBySeed, compared, pooled

TITLES = {
    "teacher_nll": ("teacher NLL ↓", 3),
    "rouge_l": ("ROUGE-L ↑", 2),
    "reverse_kl": ("reverse KL ↓", 3),
    "forward_kl": ("forward KL ↓", 3),
    "distinct_2": ("distinct-2", 3),
    "mean_length": ("length", 1),
}
TD = {"iq_learn", "bellman_distill", "bd_released", "csil", "q_lambda", "path_consistency", "sqil", "ls_iq"}
TD |= {"actor_critic", "mean_actor_critic"}
CLONING, AHEAD, MYOPIC, GRADIENT = "cloning", "TD", "TD at γ = 0", "policy gradient"
KINDS = {CLONING: COLOURS[0], AHEAD: COLOURS[1], MYOPIC: COLOURS[2], GRADIENT: COLOURS[3]}
ROW_HEIGHT = 19  # CSS pixels of a method in a figure
START = "sft_fingerprint"  # of the student that a row's training started from


@dataclass(frozen=True)
class Method:
    """Hold all seeds of one method on one split."""

    name: str
    rows: list[dict[str, Any]]

    @property
    def finished(self) -> dict[int, dict[str, dict[str, float]]]:
        """Return seed → metric → prompt → value, without the seeds that diverged."""
        return {r["seed"]: r["scores"] for r in self.rows if not r.get("diverged")}

    @property
    def kind(self) -> str:
        """Return the family that the method belongs to."""
        objective = self.rows[0]["objective"]
        name = objective.partition("(")[0]
        if name == "minillm":
            return GRADIENT
        if name not in TD or " + " in objective:
            return CLONING if name not in TD else AHEAD
        # With a linear φ the successors' values cancel.
        return MYOPIC if re.search(r"gamma=0(\.0)?[,)]|phi=linear", objective) else AHEAD

    @property
    def rate(self) -> float:
        """Return the learning rate."""
        return float(self.rows[0]["arguments"]["learning_rate"])

    def of(self, metric: str) -> ScoresBySeed:
        """Return seed → prompt → value of a metric."""
        return {seed: scores[metric] for seed, scores in self.finished.items() if scores.get(metric)}


def methods(rows: Sequence[dict[str, Any]]) -> list[Method]:
    """Return the methods in the order of their teacher NLL. Methods whose every seed diverged come last."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["method"], []).append(row)
    found = [Method(name, own) for name, own in by_name.items()]
    return sorted(found, key=lambda m: (not m.finished, pooled(m.of("teacher_nll")).mean if m.finished else 0.0))


def methods_table(rows: Sequence[dict[str, Any]], baseline: str, metrics: Sequence[str], compare: Sequence[str] = ("teacher_nll",)) -> str:
    """Return a table of methods: their metrics, and their differences from ``baseline`` in the metrics of ``compare``."""
    found = methods(rows)
    base = next(m for m in found if m.name == baseline)
    head = ["method", "seeds", *(TITLES[m][0] for m in metrics), *(f"Δ {plain_title(m)} (p)" for m in compare)]
    lines = []
    for method in found:
        differences = [MISSING if method.name == baseline else show_difference(method, base, m) for m in compare]
        lines.append([f"`{method.name}`", count_seeds(method), *(show(method, m) for m in metrics), *differences])
    return table(head, lines)


def details_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Return a table of methods with their learning rate and further metrics."""
    head = ["method", "learning rate", *(TITLES[m][0] for m in metrics)]
    return table(head, [[f"`{m.name}`", f"{m.rate:g}", *(show(m, x) for x in metrics)] for m in methods(rows)])


def rates_table(rows: Sequence[dict[str, Any]], baseline: str, metrics: Sequence[str]) -> str:
    """Return a table of methods at several learning rates, whose names end with ``@rate``."""
    found = methods(rows)
    base = next(m for m in found if m.name == baseline)
    lines = []
    for m in found:
        difference = MISSING if m is base else show_difference(m, base, "teacher_nll")
        lines.append([f"`{m.name.partition('@')[0]}`", f"{m.rate:g}", *(show(m, x) for x in metrics), difference])
    return table(["method", "learning rate", *(TITLES[m][0] for m in metrics), "Δ teacher NLL (p)"], lines)


def ablations_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Return a table of variants of ``baseline``, which all have the same number of seeds."""
    metrics = ("teacher_nll", "reverse_kl", "forward_kl", "mean_length")
    found = methods(rows)
    base = next(m for m in found if m.name == baseline)
    head = ["method", *(TITLES[m][0] for m in metrics), "Δ teacher NLL (p)"]
    lines = [[f"`{m.name}`", *(show(m, x) for x in metrics), MISSING if m is base else show_difference(m, base, "teacher_nll")] for m in found]
    return table(head, lines)


def starts_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table that counts the seeds of every method by the SFT student that they started from; only methods with another start."""
    usual = usual_start(rows)
    others = {m.name: [r["seed"] for r in m.rows if r.get(START) != usual] for m in methods(rows)}
    lines = [
        [f"`{m.name}`", str(len(m.rows) - len(others[m.name])), ", ".join(map(str, sorted(others[m.name])))]
        for m in methods(rows)
        if others[m.name]
    ]
    return table(["method", "seeds from the usual start", "seeds from another start"], lines)


def plain_title(metric: str) -> str:
    """Return a metric's column title without its arrow."""
    return TITLES[metric][0].rstrip(" ↑↓")


def usual_start(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the fingerprint of the SFT student that most rows started from."""
    return Counter(row.get(START) for row in rows).most_common(1)[0][0]


def count_seeds(method: Method) -> str:
    """Return the number of seeds that finished, and how many diverged if any did."""
    diverged = len(method.rows) - len(method.finished)
    return f"{len(method.finished)}" + (f", {diverged} diverged" if diverged else "")


def show(method: Method, metric: str, prefix: str = "") -> str:
    """Return a metric's ``mean ± standard error`` over the prompts whose id begins with ``prefix``."""
    if not method.of(metric):
        return MISSING
    value = pooled({seed: {p: x for p, x in values.items() if p.startswith(prefix)} for seed, values in method.of(metric).items()})
    return estimate(value.mean, value.stderr, TITLES[metric][1])


def show_difference(method: Method, base: Method, metric: str) -> str:
    """Return the difference of two methods in a metric, with its p-value."""
    found = compared(method.of(metric), base.of(metric)) if method.of(metric) else None
    if found is None:
        return MISSING
    return f"{number(found.difference.mean, TITLES[metric][1], signed=True)} ({p_text(found.p_value)})"


def pairs_table(rows: Sequence[dict[str, Any]], pairs: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> str:
    """Return a table of each method less each of its baselines, over the seeds that both have."""
    found = {m.name: m for m in methods(rows)}
    head = ["difference", "seeds", *(f"Δ {TITLES[m][0]} (p)" for m in metrics)]
    lines = []
    for name, baselines in pairs.items():
        for base in baselines:
            own, other = found[name], found[base]
            seeds = str(len(own.finished.keys() & other.finished.keys()))
            lines.append([f"`{name}` − `{base}`", seeds, *(show_difference(own, other, m) for m in metrics)])
    return table(head, lines)


def seconds_table(rows: Sequence[dict[str, Any]], seed: int, baseline: str) -> str:
    """Return a table of the training times of one seed's students from the usual start: one machine trained them all."""
    usual = usual_start(rows)
    own = [r for r in rows if r["seed"] == seed and r.get(START) == usual and not r.get("diverged")]
    unit = next(r["training_seconds"] for r in own if r["method"] == baseline)
    found = sorted(own, key=lambda r: r["training_seconds"])
    lines = [[f"`{r['method']}`", f"{r['training_seconds']:.0f}", f"{r['training_seconds'] / unit:.2f}"] for r in found]
    return table(["method", "seconds", f"÷ `{baseline}`'s"], lines)


def dots(key: str, caption: str, rows: Sequence[dict[str, Any]], metrics: Sequence[str], limits: Mapping[str, float]) -> Plot:
    """Plot every method's mean ± 2 standard errors, with one panel for each metric. A value beyond a limit is written at the edge."""
    found = [m for m in methods(rows) if m.finished]
    panels = [_dot_panel(metric, found, limits.get(metric)) for metric in metrics]
    counts = Counter(m.kind for m in found)
    legend = [Line(kind, colour, "-") for kind, colour in KINDS.items() if counts[kind]]
    return Plot(key, caption, panels, columns=len(metrics), size=(400, 90 + ROW_HEIGHT * len(found)), legend=legend)


def _dot_panel(metric: str, found: Sequence[Method], limit: float | None) -> Panel:
    values = [pooled(m.of(metric)) for m in found]
    title = TITLES[metric][0]

    def draw(ax: Axes) -> None:
        for y, (method, value) in enumerate(zip(found, values, strict=True)):
            colour = KINDS[method.kind]
            if limit is not None and value.mean > limit:
                ax.text(limit, y, f"{value.mean:.2f} →", ha="right", va="center", color=colour, fontsize=9)
                continue
            ax.errorbar(value.mean, y, xerr=2 * value.stderr, fmt="o", color=colour, markersize=5, capsize=2.5, linewidth=1.6)
        ax.set_yticks(range(len(found)), [m.name for m in found], fontsize=8.5)
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.set_title(title)
        if limit is not None:
            ax.set_xlim(right=limit)
        set_scale(ax, "x")

    told = "; ".join(f"{m.name} {v.mean:.{TITLES[metric][1]}f}" for m, v in zip(found, values, strict=True))
    return Panel(f"{title}: {told}.", draw)


def merge_tasks(rows: Sequence[dict[str, Any]], metrics: Sequence[str] = ("teacher_nll", "rouge_l")) -> list[dict[str, Any]]:
    """Return one row for each system, with the scores of all tasks; a prompt's id begins with its task."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = merged.setdefault(row["system"], {"method": row["system"], "seed": None, "objective": ""} | row | {"scores": {}})
        for metric in metrics:
            own["scores"].setdefault(metric, {}).update({f"{row['task']}/{p}": x for p, x in row["scores"][metric].items()})
    return list(merged.values())


def tasks_table(rows: Sequence[dict[str, Any]], baseline: str, metric: str) -> str:
    """Return a table of one metric of every method on every task, and of the difference from ``baseline`` over the prompts of all tasks."""
    tasks, found = list(dict.fromkeys(row["task"] for row in rows)), methods(merge_tasks(rows))
    base = next(m for m in found if m.name == baseline)
    lines = []
    for method in found:
        trained = method.rows[0]["seed"] is not None
        difference = MISSING if method.name == baseline or not trained else show_difference(method, base, metric)
        lines.append([f"`{method.name}`", *(show(method, metric, f"{task}/") for task in tasks), difference])
    return table(["method", *tasks, f"Δ {plain_title(metric)}, all (p)"], lines)
