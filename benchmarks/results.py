"""The tables and figures of docs/results.md that are made from docs/results/*: `python benchmarks/results.py` writes them again.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. ± is one standard error over training seeds and prompts, and p-values are of
the hierarchical bootstrap, as in `tdistill compare`. `--check` writes nothing and fails if the page or a figure is not what the data say.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tdistill.compare.pool import BySeed, compared, pooled
from tdistill.files import read_jsonl, write_text
from tdistill.report.plots import COLOURS, DASHES
from tdistill.report.svg import INK, Line, Panel, Plot, plot_file, set_scale

DOCS = Path(__file__).parents[1] / "docs"
PAGE, DATA, IMAGES = DOCS / "results.md", DOCS / "results", DOCS / "images"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

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
ENOUGH = 64  # tokens of every system in a block that is drawn
RESAMPLES = 2000
ROW_HEIGHT = 19  # CSS pixels of a method in a figure


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

    def of(self, metric: str) -> BySeed:
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
    found = methods(rows)
    base = next(m for m in found if m.name == baseline)
    compare = [m for m in ("teacher_nll", "rouge_l") if m in metrics]
    head = ["method", *(["kind"] if kinds else []), "rate", "seeds", *(TITLES[m][0] for m in metrics)]
    head += [f"Δ {TITLES[m][0].rstrip(' ↑↓')} (p)" for m in compare]
    lines = [head, ["---"] * len(head)]
    for method in found:
        diverged = len(method.rows) - len(method.finished)
        cells = [f"`{method.name}`", *([method.kind] if kinds else []), f"{method.rows[0]['arguments']['learning_rate']:g}"]
        cells += [f"{len(method.finished)}" + (f", {diverged} diverged" if diverged else "")]
        cells += [_estimate(method, m) for m in metrics]
        cells += ["–" if method.name == baseline else _difference(method, base, m) for m in compare]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _estimate(method: Method, metric: str, prefix: str = "") -> str:
    """Over the prompts whose id begins with ``prefix``."""
    digits = TITLES[metric][1]
    if not method.of(metric):
        return "–"
    value = pooled({seed: {p: x for p, x in values.items() if p.startswith(prefix)} for seed, values in method.of(metric).items()})
    return f"{value.mean:.{digits}f} ± {value.stderr:.{digits}f}"


def _difference(method: Method, base: Method, metric: str) -> str:
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
            lines.append([f"`{name}` − `{base}`", seeds, *(_difference(own, other, m) for m in metrics)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds_table(rows: Sequence[dict[str, Any]], seed: int, baseline: str) -> str:
    """Training, and what of it lies before the best checkpoint, of the students of one seed, which one machine trained."""
    found = sorted((r for r in rows if r["seed"] == seed and not r.get("diverged")), key=lambda r: r["training_seconds"])
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


def decoding_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every method at several decoding temperatures."""
    found = {t: {m.name: m for m in methods(own)} for t, own in _by_temperature(rows).items()}
    shown = ("teacher_nll", "rouge_l", "distinct_2")
    head = ["method", "seeds", *(f"{TITLES[m][0]}, T = {t:g}" for m in shown for t in found)]
    lines = [head, ["---"] * len(head)]
    for name, method in found[min(found)].items():
        lines.append([f"`{name}`", str(len(method.finished)), *(_estimate(found[t][name], m) for m in shown for t in found)])
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
    if np.isnan(values[0]):
        return "–"
    text = f"{values[0]:.{digits}f} ± {np.nanstd(values[1:], ddof=1):.{digits}f}"
    if differences is None or np.isnan(differences[0]):
        return text
    below = np.nanmean(differences[1:] < 0)
    p = min(1.0, 2 * max(min(below, 1 - below), 1 / RESAMPLES))
    return f"{text}, {differences[0]:+.{digits}f} ({p:.3f})".replace("-", "−").replace("(0.", "(.")


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


def tasks_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Every method on every task, and its difference to ``baseline`` over the prompts of all."""
    tasks, shown = list(dict.fromkeys(row["task"] for row in rows)), ("teacher_nll", "rouge_l")
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        own = merged.setdefault(row["system"], {"method": row["system"], "seed": None, "objective": ""} | row | {"scores": {}})
        for metric in shown:
            own["scores"].setdefault(metric, {}).update({f"{row['task']}/{p}": x for p, x in row["scores"][metric].items()})
    found = methods(list(merged.values()))
    base = next(m for m in found if m.name == baseline)
    head = ["method", "seeds", *(f"{TITLES[m][0]}, {task}" for m in shown for task in tasks)]
    head += [f"Δ {TITLES[m][0].rstrip(' ↑↓')}, all (p)" for m in shown]
    lines = [head, ["---"] * len(head)]
    for method in found:
        trained = method.rows[0]["seed"] is not None
        cells = [f"`{method.name}`", str(len(method.rows)) if trained else "–"]
        cells += [_estimate(method, m, f"{task}/") for m in shown for task in tasks]
        cells += ["–" if method.name == baseline or not trained else _difference(method, base, m) for m in shown]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def exposure_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Of every method on its own text: KL to the teacher and the teacher's NLL per token, within the trained length and beyond."""
    head = [
        "method",
        "seeds",
        "KL(q‖p) on own text",
        f"against `{baseline}`",
        "teacher NLL",
        "NLL over the teacher's, first 8 tokens",
        "tokens 33 to 64",
    ]
    lines = [head, ["---"] * len(head)]
    found = _exposures(rows)
    for name in sorted(found, key=lambda n: np.mean([_mean(r, "kl") for r in found[n]])):
        own, base = found[name], {r.get("seed"): r for r in found[baseline]}
        kl, nll = ([_mean(r, key) for r in own] for key in ("kl", "nll"))
        paired = [_mean(r, "kl") - _mean(base[r["seed"]], "kl") for r in own if r.get("seed") in base]
        gaps = [[_mean(r, "nll", part) - _mean(found["teacher"][0], "nll", part) for r in own] for part in (slice(8), slice(32, 64))]
        against = "–" if name == baseline or not paired else _with_error(paired, signed=True)
        lines.append([f"`{name}`", str(len(own)), _with_error(kl), against, *map(_with_error, (nll, *gaps))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _exposures(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Method, or system without training seeds → its rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.get("method", row["system"]), []).append(row)
    return found


def _mean(row: dict[str, Any], key: str, part: slice = slice(None)) -> float:
    return float(np.sum(row[key][part]) / max(np.sum(row["count"][part]), 1))


def _with_error(values: Sequence[float], signed: bool = False) -> str:
    text = f"{np.mean(values):{'+' if signed else ''}.3f}".replace("-", "−")
    return text + (f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else "")


def exposure_plot(rows: Sequence[dict[str, Any]], names: Sequence[str], block: int = 8) -> Plot:
    """The teacher's NLL of a student's text above that of its own text, and KL on the student's text, by position in blocks of tokens."""
    found = _exposures(rows)
    colours = dict(zip(names, COLOURS, strict=False))
    titles = {"nll": "NLL above the teacher's", "kl": "KL(q‖p) on own text"}
    panels = [_position_panel(title, key, found, colours, block) for key, title in titles.items()]
    trained = rows[0]["trained_length"]
    caption = f"By position in the student's own text, means over blocks of {block} tokens and over seeds; trained on up to {trained}."
    legend = [Line(name, colour, "-") for name, colour in colours.items()]
    return Plot("fast-exposure", caption, panels, columns=2, size=(440, 280), legend=legend)


def _position_panel(title: str, key: str, found: Mapping[str, list[dict[str, Any]]], colours: Mapping[str, str], block: int) -> Panel:
    teacher = found["teacher"][0]
    length, trained = teacher["length"], teacher["trained_length"]
    counts = np.array([r["count"] for n in ("teacher", *colours) for r in found[n]])
    starts = [t for t in range(0, length, block) if counts[:, t : t + block].sum(1).min() >= ENOUGH]
    level = {t: _mean(teacher, "nll", slice(t, t + block)) if key == "nll" else 0.0 for t in starts}
    curves = {n: [float(np.mean([_mean(r, key, slice(t, t + block)) for r in found[n]])) - level[t] for t in starts] for n in colours}

    def draw(ax: Axes) -> None:
        for name, curve in curves.items():
            ax.plot([t + block / 2 for t in starts], curve, "o-", color=colours[name], markersize=4, linewidth=1.6)
        if starts[-1] > trained:
            ax.axvline(trained, color=INK, linestyle=":", linewidth=1)
        ax.set_title(title)
        ax.set_xlabel("token")
        ax.set_ylabel("nats")
        set_scale(ax, "x")
        set_scale(ax, "y")

    told = "; ".join(f"{n}: " + ", ".join(f"{t} {v:.2f}" for t, v in zip(starts, curve, strict=True)) for n, curve in curves.items())
    return Panel(f"{title}. {told}.", draw)


def lookahead_table(rows: Sequence[dict[str, Any]]) -> str:
    """What looking ahead could gain, by student, kind of return and γ."""
    lines = ["| student | KL(q‖p) a state | return | γ | gain a state | variance of one return |", "|---" * 6 + "|"]
    for row in rows:
        for g in sorted(row["gains"], key=lambda g: (g["return"], g["gamma"])):
            gain = f"{g['gain']['mean']:.2f} ± {g['gain']['stderr']:.2f}"
            cells = (f"`{row['student']}`", f"{row['kl']['mean']:.2f}", g["return"], f"{g['gamma']:g}", gain, f"{g['noise_variance']:.2g}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lookahead_plot(rows: Sequence[dict[str, Any]]) -> Plot:
    """The gain by γ, a panel a student, a line a kind of return."""
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


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file in docs/results."""
    return read_jsonl(DATA / name)


REAL_TEMPERATURES, FAST_TEMPERATURES = ("0.5", "0.7", "1"), ("0.4", "0.7", "1")
# What looking ahead adds to cloning on the same support, and both against the field's cloning.
PAIRS = {
    "ac_gamma_09": ("reverse_kl", "jsd", "forward_kl"),
    "ac_dense_gamma_09": ("reverse_kl_dense",),
    "ac_uniform_gamma_09": ("reverse_kl_uniform", "reverse_kl_dense", "jsd", "forward_kl"),
    "reverse_kl_uniform": ("reverse_kl", "reverse_kl_dense", "jsd"),
}
TABLES = {
    "real": lambda: methods_table(rows_of("real.jsonl.xz"), "jsd"),
    "real-pairs": lambda: pairs_table(rows_of("real.jsonl.xz"), PAIRS, ("teacher_nll", "rouge_l", "distinct_2", "forward_kl")),
    "real-seconds": lambda: seconds_table(rows_of("real.jsonl.xz"), 19, "forward_kl"),
    "real-variety": lambda: equal_variety_table(decoded("real", REAL_TEMPERATURES), (0.9, 0.85, 0.8), "jsd"),
    "real-tasks": lambda: tasks_table(rows_of("real-tasks.jsonl.xz"), "jsd"),
    "real-valid": lambda: methods_table(rows_of("real-valid.jsonl.xz"), "jsd@0.0001"),
    "real-decoding": lambda: decoding_table(decoded("real", REAL_TEMPERATURES)),
    "fast": lambda: methods_table(rows_of("fast.jsonl.xz"), best_cloning(rows_of("fast.jsonl.xz"))),
    "fast-exposure": lambda: exposure_table(rows_of("fast-exposure.jsonl"), "reverse_kl"),
    "fast-bd-ablations": lambda: methods_table(bd_ablations(), "bd_tail_10", ABLATED, kinds=False),
    "fast-decoding": lambda: decoding_table(decoded("fast", FAST_TEMPERATURES)),
    "fast-variety": lambda: equal_variety_table(decoded("fast", FAST_TEMPERATURES), (0.98, 0.97, 0.95), "jsd"),
    "fast-ac-ablations": lambda: methods_table(ac_ablations(), "ac_dense_gamma_09", ABLATED, kinds=False),
    "fast-lm": lambda: methods_table(lm_ablations(), "ac_dense_gamma_09", ABLATED, kinds=False),
    "lookahead": lambda: lookahead_table(rows_of("lookahead.jsonl")),
}
ABLATED = ("teacher_nll", "reverse_kl", "forward_kl", "mean_length")
EXPOSED = ("sft_continued", "forward_kl_dense", "jsd", "reverse_kl", "ac_centred", "bd_tail_10")
FIGURES = {
    "real-methods": lambda: dots(
        "real-methods",
        "A real pair, test prompts: mean ± 2 standard errors over seeds and prompts, in the order of teacher NLL.",
        rows_of("real.jsonl.xz"),
        ("teacher_nll", "rouge_l"),
        {"teacher_nll": 3.6},
    ),
    "real-frontier": lambda: frontier_plot(
        "real-frontier",
        "A real pair, validation prompts: each method at decoding temperatures .5, .7 and 1, from left to right.",
        decoded("real", REAL_TEMPERATURES),
    ),
    "fast-exposure": lambda: exposure_plot(rows_of("fast-exposure.jsonl"), EXPOSED),
    "lookahead": lambda: lookahead_plot(rows_of("lookahead.jsonl")),
    "fast-methods": lambda: dots(
        "fast-methods",
        "Fast bench, test prompts: mean ± 2 standard errors over seeds and prompts, in the order of teacher NLL.",
        rows_of("fast.jsonl.xz"),
        ("teacher_nll", "rouge_l"),
        {"teacher_nll": 6.0},
    ),
}


def decoded(bench: str, temperatures: Sequence[str]) -> list[dict[str, Any]]:
    """The rows at several decoding temperatures."""
    return [row for t in temperatures for row in rows_of(f"{bench}-decoding-{t}.jsonl.xz")]


def ac_ablations() -> list[dict[str, Any]]:
    """The rows at the roll-outs' own p, and those on the candidates of others, named by it."""
    return rows_of("fast-ac-ablations.jsonl.xz") + _renamed("fast-ac-p-{}.jsonl.xz", ("0.5", "0.8"))


def lm_ablations() -> list[dict[str, Any]]:
    """Without and with a language-modelling term."""
    with_term = [row | {"method": f"{row['method']}, LM term"} for row in rows_of("fast-lm-0.5.jsonl.xz")]
    return rows_of("fast-lm-0.jsonl.xz") + with_term


def _renamed(pattern: str, values: Sequence[str]) -> list[dict[str, Any]]:
    rows = [row for p in values for row in rows_of(pattern.format(p))]
    return [row | {"method": f"{row['method']}, p = {row['recipe']['train']['teacher_top_p']:g}"} for row in rows]


def bd_ablations() -> list[dict[str, Any]]:
    """The rows at the roll-outs' own p, and those of the base at others, named by it."""
    return rows_of("fast-bd-ablations.jsonl.xz") + _renamed("fast-bd-p-{}.jsonl.xz", ("0.5", "0.8", "1.0"))


def best_cloning(rows: Sequence[dict[str, Any]]) -> str:
    """The cloning method with the lowest teacher NLL."""
    return next(m.name for m in methods(rows) if m.kind == CLONING)


def page(text: str) -> str:
    """The page with every table made again."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something would change")
    check = parser.parse_args().check
    wanted = {PAGE: page(PAGE.read_text(encoding="utf-8"))}
    wanted |= {IMAGES / f"{name}.svg": plot_file(figure()) + "\n" for name, figure in FIGURES.items()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(DOCS.parent))
        if not check:
            write_text(path, wanted[path])
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
