"""All seeds of a method as one: its estimates, its differences, and the tables and figures that are made of them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """All seeds of one method on one split."""

    name: str
    rows: list[dict[str, Any]]

    @property
    def finished(self) -> dict[int, dict[str, dict[str, float]]]:
        """Seed → metric → prompt → value, without those that diverged."""
        return {r["seed"]: r["scores"] for r in self.rows if not r.get("diverged")}

    @property
    def kind(self) -> str:
        """What it learns from."""
        objective = self.rows[0]["objective"]
        name = objective.partition("(")[0]
        if name == "minillm":
            return GRADIENT
        if name not in TD or " + " in objective:
            return CLONING if name not in TD else AHEAD
        # With a linear φ the successors' values cancel.
        return MYOPIC if re.search(r"gamma=0(\.0)?[,)]|phi=linear", objective) else AHEAD

    def of(self, metric: str) -> ScoresBySeed:
        """Seed → prompt → value."""
        return {seed: scores[metric] for seed, scores in self.finished.items() if scores.get(metric)}


def methods(rows: Sequence[dict[str, Any]]) -> list[Method]:
    """In the order of their teacher NLL; those that always diverged last."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["method"], []).append(row)
    found = [Method(name, own) for name, own in by_name.items()]
    return sorted(found, key=lambda m: (not m.finished, pooled(m.of("teacher_nll")).mean if m.finished else 0.0))


def methods_table(rows: Sequence[dict[str, Any]], baseline: str, metrics: Sequence[str] = tuple(TITLES), kinds: bool = True) -> str:
    """One line a method, with its difference to ``baseline`` in teacher NLL and ROUGE-L."""
    found, usual = methods(rows), usual_start(rows)
    base = next(m for m in found if m.name == baseline)
    compare = [m for m in ("teacher_nll", "rouge_l") if m in metrics]
    head = ["method", *(["kind"] if kinds else []), "rate", "seeds", *(TITLES[m][0] for m in metrics)]
    head += [f"Δ {TITLES[m][0].rstrip(' ↑↓')} (p)" for m in compare]
    lines = [head, ["---"] * len(head)]
    for method in found:
        diverged = len(method.rows) - len(method.finished)
        cells = [f"`{method.name}`", *([method.kind] if kinds else []), f"{method.rows[0]['arguments']['learning_rate']:g}"]
        cells += [count_seeds(method, usual) + (f", {diverged} diverged" if diverged else "")]
        cells += [show(method, m) for m in metrics]
        cells += ["–" if method.name == baseline else show_difference(method, base, m) for m in compare]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def usual_start(rows: Sequence[dict[str, Any]]) -> str | None:
    """The SFT student that most rows started from."""
    return Counter(row.get(START) for row in rows).most_common(1)[0][0]


def count_seeds(method: Method, usual: str | None) -> str:
    """n, or n (m†) where m of them started from another SFT student than is usual."""
    others = sum(row.get(START) != usual for row in method.rows if not row.get("diverged"))
    return f"{len(method.finished)}" + (f" ({others}†)" if others else "")


def show(method: Method, metric: str, prefix: str = "") -> str:
    """Over the prompts whose id begins with ``prefix``."""
    digits = TITLES[metric][1]
    if not method.of(metric):
        return "–"
    value = pooled({seed: {p: x for p, x in values.items() if p.startswith(prefix)} for seed, values in method.of(metric).items()})
    return f"{value.mean:.{digits}f} ± {value.stderr:.{digits}f}"


def show_difference(method: Method, base: Method, metric: str) -> str:
    found = compared(method.of(metric), base.of(metric)) if method.of(metric) else None
    if found is None:
        return "–"
    p = "<.001" if found.p_value < 0.001 else f"{found.p_value:.3f}".removeprefix("0")
    return f"{found.difference.mean:+.{TITLES[metric][1]}f} ({p})".replace("-", "−")


def pairs_table(rows: Sequence[dict[str, Any]], pairs: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> str:
    """Each method less each of its baselines, over the seeds that both have."""
    found = {m.name: m for m in methods(rows)}
    head = ["difference", "seeds", *(f"Δ {TITLES[m][0]} (p)" for m in metrics)]
    lines = [head, ["---"] * len(head)]
    for name, baselines in pairs.items():
        for base in baselines:
            own, other = found[name], found[base]
            seeds = str(len(own.finished.keys() & other.finished.keys()))
            lines.append([f"`{name}` − `{base}`", seeds, *(show_difference(own, other, m) for m in metrics)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds_table(rows: Sequence[dict[str, Any]], seed: int, baseline: str) -> str:
    """Training, and what of it lies before the best checkpoint, of the students of one seed from the usual start: one machine trained them."""
    usual = usual_start(rows)
    own = [r for r in rows if r["seed"] == seed and r.get(START) == usual and not r.get("diverged")]
    found = sorted(own, key=lambda r: r["training_seconds"])
    unit = next(r["training_seconds"] for r in found if r["method"] == baseline)
    lines = [f"| method | seconds | ÷ `{baseline}`'s | to the best checkpoint, ÷ `{baseline}`'s whole |", "|---" * 4 + "|"]
    for row in found:
        seconds, share = row["training_seconds"], row["best_step"] / row["arguments"]["max_steps"]
        lines.append(f"| `{row['method']}` | {seconds:.0f} | {seconds / unit:.2f} | {share * seconds / unit:.2f} |")
    return "\n".join(lines)


def dots(key: str, caption: str, rows: Sequence[dict[str, Any]], metrics: Sequence[str], limits: Mapping[str, float]) -> Plot:
    """Every method's mean ± 2 standard errors, one panel a metric; what lies beyond a limit is written at the edge."""
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


def tasks_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Every method on every task, and its difference to ``baseline`` over the prompts of all."""
    tasks, shown = list(dict.fromkeys(row["task"] for row in rows)), ("teacher_nll", "rouge_l")
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = merged.setdefault(row["system"], {"method": row["system"], "seed": None, "objective": ""} | row | {"scores": {}})
        for metric in shown:
            own["scores"].setdefault(metric, {}).update({f"{row['task']}/{p}": x for p, x in row["scores"][metric].items()})
    found, usual = methods(list(merged.values())), usual_start([r for r in merged.values() if START in r])
    base = next(m for m in found if m.name == baseline)
    head = ["method", "seeds", *(f"{TITLES[m][0]}, {task}" for m in shown for task in tasks)]
    head += [f"Δ {TITLES[m][0].rstrip(' ↑↓')}, all (p)" for m in shown]
    lines = [head, ["---"] * len(head)]
    for method in found:
        trained = method.rows[0]["seed"] is not None
        cells = [f"`{method.name}`", count_seeds(method, usual) if trained else "–"]
        cells += [show(method, m, f"{task}/") for m in shown for task in tasks]
        cells += ["–" if method.name == baseline or not trained else show_difference(method, base, m) for m in shown]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
