"""The tables and figures of docs/results*.md that are made from docs/results/*: `python benchmarks/results.py` writes them again.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. ± is one standard error over training seeds and prompts, and p-values are of
the hierarchical bootstrap, as in `tdistill compare`. `--check` writes nothing and fails if a page or a figure is not what the data say.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from decoding import ahead_table, compared_table, curves, decoding_table, equal_entropy_table
from matplotlib.axes import Axes
from pooled_methods import CLONING, dots, methods, methods_table, pairs_table, seconds_table, tasks_table

from tdistill.compare.frontier import frontier_plot
from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import INK, Line, Panel, Plot, plot_file, set_scale
from tdistill.runtime.files import read_jsonl, write_text

DOCS = Path(__file__).parents[1] / "docs"
PAGES, DATA, IMAGES = sorted(DOCS.glob("results*.md")), DOCS / "results", DOCS / "images"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
BEYOND = 30  # texts of every system that go on after the trained length, for a column of what follows
ENOUGH = 64  # tokens of every system in a block that is drawn


def exposure_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Of every method on its own text: KL to the teacher by stretch of the text, and the teacher's NLL above that of its own text."""
    found, trained = _exposures(rows), rows[0]["trained_length"]
    stretches = {"tokens 1 to 8": slice(8), f"9 to {trained}": slice(8, trained)}
    if min(r["count"][trained] for r in rows) >= BEYOND:
        stretches[f"{trained + 1} to {rows[0]['length']}"] = slice(trained, None)
    head = ["method", "seeds", "KL(q‖p) on own text", f"against `{baseline}`", *stretches, "teacher NLL"]
    head += [f"over the teacher's, {where}" for where in stretches]
    lines = [head, ["---"] * len(head)]
    for name in sorted(found, key=lambda n: np.mean([_mean(r, "kl") for r in found[n]])):
        own, base = found[name], {r.get("seed"): r for r in found[baseline]}
        kl, nll = ([_mean(r, key) for r in own] for key in ("kl", "nll"))
        paired = [_mean(r, "kl") - _mean(base[r["seed"]], "kl") for r in own if r.get("seed") in base]
        parts = [[_mean(r, "kl", part) for r in own] for part in stretches.values()]
        gaps = [[_mean(r, "nll", part) - _mean(found["teacher"][0], "nll", part) for r in own] for part in stretches.values()]
        against = "–" if name == baseline or not paired else _with_error(paired, signed=True)
        lines.append([f"`{name}`", str(len(own)), _with_error(kl), against, *map(_with_error, (*parts, nll, *gaps))])
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


def exposure_plot(key: str, rows: Sequence[dict[str, Any]], names: Sequence[str], block: int = 8) -> Plot:
    """The teacher's NLL of a student's text above that of its own text, and KL on the student's text, by position in blocks of tokens."""
    found = _exposures(rows)
    colours = dict(zip(names, COLOURS, strict=False))
    titles = {"nll": "NLL above the teacher's", "kl": "KL(q‖p) on own text"}
    panels = [_position_panel(title, metric, found, colours, block) for metric, title in titles.items()]
    trained = rows[0]["trained_length"]
    caption = f"By position in the student's own text, means over blocks of {block} tokens and over seeds; trained on up to {trained}."
    legend = [Line(name, colour, "-") for name, colour in colours.items()]
    return Plot(key, caption, panels, columns=2, size=(440, 280), legend=legend)


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


# What looking ahead adds to cloning on the same support, and both against the field's cloning.
PAIRS = {
    "ac_gamma_09": ("reverse_kl", "jsd", "forward_kl"),
    "ac_dense_gamma_09": ("reverse_kl_dense",),
    "ac_uniform_gamma_09": ("reverse_kl_uniform", "reverse_kl_dense", "jsd", "forward_kl"),
    "reverse_kl_uniform": ("reverse_kl", "reverse_kl_dense", "jsd"),
    "bd_tail_100": ("bd_tail_100_gamma_0",),
}
OWN_CLONING = {
    "ac_gamma_09": "reverse_kl",
    "ac_jsd_gamma_09": "jsd",
    "ac_jsd_uniform_gamma_09": "jsd_uniform",
    "ac_uniform_gamma_09": "reverse_kl_uniform",
    "ac_dense_gamma_09": "reverse_kl_dense",
    "ac_own_gamma_09": "reverse_kl_own",
}
LONGER = {"jsd_long": "jsd", "ac_uniform_gamma_09_long": "ac_uniform_gamma_09"}
TABLES = {
    "quickstart-entropy": lambda: compared_table(rows_of("quickstart-entropy.jsonl")),
    "real": lambda: methods_table(rows_of("real.jsonl.xz"), "jsd"),
    "real-pairs": lambda: pairs_table(rows_of("real.jsonl.xz"), PAIRS, ("teacher_nll", "rouge_l", "distinct_2", "forward_kl")),
    "real-seconds": lambda: seconds_table(rows_of("real.jsonl.xz"), 19, "forward_kl"),
    "real-entropy": lambda: equal_entropy_table(rows_of("real-temperatures-test.jsonl.xz"), "jsd"),
    "real-entropy-ahead": lambda: ahead_table(rows_of("real-temperatures-test.jsonl.xz"), OWN_CLONING),
    "real-entropy-valid": lambda: equal_entropy_table(rows_of("real-temperatures.jsonl.xz"), "jsd"),
    "real-entropy-ahead-valid": lambda: ahead_table(rows_of("real-temperatures.jsonl.xz"), OWN_CLONING),
    "real-long": lambda: equal_entropy_table(trained_for_longer(), "jsd_long"),
    "real-long-gain": lambda: ahead_table(trained_for_longer(), LONGER),
    "real-tasks": lambda: tasks_table(rows_of("real-tasks.jsonl.xz"), "jsd"),
    "real-valid": lambda: methods_table(rows_of("real-valid.jsonl.xz"), "jsd@0.0001"),
    "real-temperatures": lambda: decoding_table(rows_of("real-temperatures-test.jsonl.xz")),
    "real-exposure": lambda: exposure_table(rows_of("real-exposure.jsonl"), "reverse_kl"),
    "fast": lambda: methods_table(rows_of("fast.jsonl.xz"), best_cloning(rows_of("fast.jsonl.xz"))),
    "fast-exposure": lambda: exposure_table(rows_of("fast-exposure.jsonl"), "reverse_kl"),
    "fast-bd-ablations": lambda: methods_table(bd_ablations(), "bd_tail_10", ABLATED, kinds=False),
    "fast-temperatures": lambda: decoding_table(rows_of("fast-temperatures.jsonl.xz")),
    "fast-entropy": lambda: equal_entropy_table(rows_of("fast-temperatures.jsonl.xz"), "jsd"),
    "fast-entropy-ahead": lambda: ahead_table(rows_of("fast-temperatures.jsonl.xz"), OWN_CLONING),
    "fast-ac-ablations": lambda: methods_table(ac_ablations(), "ac_dense_gamma_09", ABLATED, kinds=False),
    "fast-lm": lambda: methods_table(lm_ablations(), "ac_dense_gamma_09", ABLATED, kinds=False),
    "lookahead": lambda: lookahead_table(rows_of("lookahead.jsonl")),
}
ABLATED = ("teacher_nll", "reverse_kl", "forward_kl", "mean_length")
REAL_EXPOSED = ("reverse_kl", "ac_gamma_09", "jsd", "reverse_kl_uniform", "ac_uniform_gamma_09")
EXPOSED = ("sft_continued", "forward_kl_dense", "jsd", "reverse_kl", "ac_centred", "bd_tail_10")
FIGURES = {
    "real-methods": lambda: dots(
        "real-methods",
        "A real pair, test prompts: mean ± 2 standard errors over seeds and prompts, in the order of teacher NLL.",
        rows_of("real.jsonl.xz"),
        ("teacher_nll", "rouge_l"),
        {"teacher_nll": 3.8},
    ),
    "real-frontier": lambda: frontier_plot(
        "real-frontier",
        "A real pair, test prompts: each method through its decoding temperatures, the lowest at the left; mean ± 1 standard error.",
        curves(
            [r for r in rows_of("real-temperatures-test.jsonl.xz") if "method" in r or r["temperature"] <= 1]
        ),  # hotter, they squeeze the rest
    ),
    "fast-exposure": lambda: exposure_plot("fast-exposure", rows_of("fast-exposure.jsonl"), EXPOSED),
    "real-exposure": lambda: exposure_plot("real-exposure", rows_of("real-exposure.jsonl"), REAL_EXPOSED, block=16),
    "lookahead": lambda: lookahead_plot(rows_of("lookahead.jsonl")),
    "fast-methods": lambda: dots(
        "fast-methods",
        "Fast bench, test prompts: mean ± 2 standard errors over seeds and prompts, in the order of teacher NLL.",
        rows_of("fast.jsonl.xz"),
        ("teacher_nll", "rouge_l"),
        {"teacher_nll": 6.0},
    ),
}


def trained_for_longer() -> list[dict[str, Any]]:
    """Students of four times the steps, and with the same seeds those that they are four times of; the teacher."""
    long = [r for r in rows_of("real-long-temperatures.jsonl.xz") if "method" in r]
    short, seeds = {r["method"].removesuffix("_long") for r in long}, {r["seed"] for r in long}
    others = rows_of("real-temperatures-test.jsonl.xz")
    return long + [r for r in others if r["system"] == "teacher" or (r.get("method") in short and r["seed"] in seeds)]


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
    """A page with every table made again."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something would change")
    check = parser.parse_args().check
    wanted = {path: page(path.read_text(encoding="utf-8")) for path in PAGES}
    wanted |= {IMAGES / f"{name}.svg": plot_file(figure()) + "\n" for name, figure in FIGURES.items()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(DOCS.parent))
        if not check:
            write_text(path, wanted[path])
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
