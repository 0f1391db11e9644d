"""Draw the pictures of docs/concepts: `python benchmarks/figures.py` writes them again, the same bytes from the same numbers;
`--check` writes nothing and fails if one is stale.

Measured numbers come from docs/results/*.jsonl and from the table in docs/concepts/candidates.md. The curves of α on the left of
`td-alpha.svg` are solved for here, exactly.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from artefact_figure import artefacts_plot
from matplotlib.axes import Axes
from tree_figure import tree_plot

from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import INK, Line, Panel, Plot, plot_file, set_scale
from tdistill.runtime.files import read_jsonl, write_text
from tdistill.theory.imitation import bandit, solve
from tdistill.theory.sweeps import BANDIT_EXPERT

DOCS = Path(__file__).parents[1] / "docs"
BLUE, ORANGE, GREEN, PINK, OCHRE = COLOURS[:5]
GREY = "#808080"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a picture would change")
    check, stale = parser.parse_args().check, 0
    for plot in (artefacts_plot(), tree_plot(), candidates_plot(), alpha_plot(), objectives_plot()):
        path, text = DOCS / "images" / f"{plot.key}.svg", plot_file(plot) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            print(path.relative_to(DOCS.parent))
            stale += 1
            if not check:
                write_text(path, text)
    sys.exit(1 if check and stale else 0)


def candidates_plot() -> Plot:
    """Plot the number of candidates for each p, and the entropy that a tail bucket hides, for the packaged teacher."""
    ps, sizes, hidden = zip(*measured_cuts(), strict=True)
    panels = [
        _by_p("candidates a state, mean (log scale)", ps, sizes, "{:,.4g}", log=True),
        _by_p("entropy hidden by the tail bucket, %", ps, hidden, "{:.0f} %", log=False),
    ]
    caption = "What p costs and what it hides: SmolLM2-135M-Instruct on its own answers."
    return Plot("action-space", caption, panels, columns=2, size=(440, 250))


def measured_cuts() -> list[tuple[float, float, float]]:
    """Read (p, candidates, % of the entropy hidden) from the table of docs/concepts/candidates.md with these titles."""
    text = (DOCS / "concepts/candidates.md").read_text(encoding="utf-8")
    table = text.split("| p | candidates (mean) | entropy hidden by the tail bucket |\n", 1)[1].split("\n\n", 1)[0]
    cells = (re.findall(r"[\d.]+", line) for line in table.splitlines()[1:])
    return [(float(p), float(size), float(share)) for p, size, share in cells]


def _by_p(title: str, ps: Sequence[float], values: Sequence[float], label: str, log: bool) -> Panel:
    def draw(ax: Axes) -> None:
        ax.plot(ps, values, "o-", color=BLUE, linewidth=1.6, markersize=5)
        for i, (p, value) in enumerate(zip(ps, values, strict=True)):
            left = values[-1] > values[0]  # a rising curve has room on its upper left, a falling one on its upper right
            offset, align = ((-7, 5), "right") if left else ((7, 5), "left")
            ax.annotate(label.format(value), (p, value), offset, textcoords="offset points", ha="center" if i == 0 and left else align)
        ax.set_title(title)
        ax.set_xlabel("p")
        ax.set_xlim(0.45, 1.0)
        ax.set_ylim(*((2, 1000) if log else (0, 1.15 * max(values))))
        set_scale(ax, "x")
        set_scale(ax, "y", log=log)
        ax.set_xticks(ps, [f"{p:g}" for p in ps])

    return Panel(f"{title}: " + "; ".join(f"p = {p:g}: {label.format(v)}" for p, v in zip(ps, values, strict=True)) + ".", draw)


ALPHAS = [10.0 ** (k / 4) for k in range(-6, 13)]  # .03 to 1000


def alpha_plot() -> Plot:
    """Plot the bias of α: exact on one choice, and measured on the quickstart's pair."""
    colours = (BLUE, ORANGE, GREEN, PINK)
    lines = [Line(f"expert takes it with {e:.2f}", c, "-") for e, c in zip(BANDIT_EXPERT, colours, strict=True)]
    caption = "What α does: the policy that the loss ends at on one choice among four tokens, and the teacher NLL of real students."
    return Plot("td-alpha", caption, [_policy_panel(colours), _nll_panel()], columns=2, size=(480, 280), legend=lines)


def _policy_panel(colours: Sequence[str]) -> Panel:
    problem, _ = bandit(BANDIT_EXPERT)
    policies = torch.stack([solve(problem, alpha)[0, 0].softmax(-1) for alpha in ALPHAS])

    def draw(ax: Axes) -> None:
        for probs, expert, colour in zip(policies.T.tolist(), BANDIT_EXPERT, colours, strict=True):
            ax.axhline(expert, color=colour, linestyle=":", linewidth=1.2)
            ax.plot(ALPHAS, probs, color=colour, linewidth=1.8)
        ax.set_title("one choice, exact (dots: the expert)")
        ax.set_xlabel("α, log scale")
        ax.set_ylabel("probability")
        ax.set_ylim(0, 0.8)
        set_scale(ax, "x", log=True)
        set_scale(ax, "y")

    told = "; ".join(f"α = {a:g}: " + " / ".join(f"{x:.2f}" for x in p) for a, p in zip(ALPHAS[::4], policies[::4].tolist(), strict=True))
    return Panel(f"Exact minimiser on one choice with expert .70/.20/.07/.03. {told}.", draw)


def selection(system: str) -> tuple[float, float]:
    """Return a method's teacher NLL and its standard error on the validation prompts: seed 17, p = .95, learning rate 1e-4, 60 steps."""
    setting = {"rollout.teacher_top_p": 0.95, "train.teacher_top_p": 0.95, "learning_rate": 1e-4, "max_steps": 60, "system": f"{system}-17"}
    (row,) = (r for r in read_jsonl(DOCS / "results/quickstart-selection.jsonl") if all(r.get(k) == v for k, v in setting.items()))
    return row["metrics"]["teacher_nll"]["mean"], row["metrics"]["teacher_nll"]["stderr"]


def _nll_panel() -> Panel:
    alphas = (0.1, 10, 100, 1000)
    plain = [selection(f"bd_alpha_{alpha:g}") for alpha in alphas]
    held, (sft, sft_stderr) = selection("bd_tail_100"), selection("sft_continued")

    def draw(ax: Axes) -> None:
        means, stderrs = zip(*plain, strict=True)
        ax.errorbar(alphas, means, [2 * s for s in stderrs], fmt="o-", color=OCHRE, markersize=6, capsize=3, linewidth=1.8)
        ax.errorbar(100, held[0], 2 * held[1], fmt="s", color=INK, markersize=6, capsize=3, linewidth=1.8)
        ax.axhline(sft, color=GREY, linestyle="--", linewidth=1.6)
        ax.axhspan(sft - 2 * sft_stderr, sft + 2 * sft_stderr, color=GREY, alpha=0.18, linewidth=0)
        ax.text(0.35, 5.05, "Bellman Distill as published", va="center")
        ax.text(80, held[0], "held at the tail", ha="right", va="center")
        ax.text(0.07, sft - 2 * sft_stderr - 0.04, "SFT continued", va="top")
        ax.set_title("teacher NLL, real pair (lower is better)")
        ax.set_xlabel("α, log scale; bars are ±2 standard errors")
        ax.set_ylabel("nats a token")
        ax.set(xlim=(0.05, 2000), ylim=(2.5, 5.6))
        set_scale(ax, "x", log=True)
        set_scale(ax, "y")

    told = "; ".join(f"α = {a:g}: {m:.2f}" for a, (m, _) in zip(alphas, plain, strict=True))
    return Panel(f"Teacher NLL by α: {told}. Held at the tail, α = 100: {held[0]:.2f}. SFT continued: {sft:.2f}.", draw)


FAMILIES = {  # method of quickstart-objectives.jsonl → its name here and its family's colour; others are shown as they are called
    "bd_alpha_0.1": ("Bellman Distill, α = .1", OCHRE),
    "bd_alpha_1000": ("Bellman Distill, α = 1000", OCHRE),
    "bd_tail_100": ("BD α = 100, tail held", ORANGE),
    "bd_tail_100_gamma_0": ("the same, γ = 0", ORANGE),
    "forward_kl": ("forward KL", BLUE),
    "forward_kl_dense": ("forward KL, dense", BLUE),
    "rkl_fkl_0.25": ("reverse + ¼ forward KL", PINK),
    "reverse_kl": ("reverse KL", GREEN),
    "reverse_kl_dense": ("reverse KL, dense", GREEN),
}


def objectives_plot() -> Plot:
    """Plot every objective's difference from SFT continued, paired by prompt and seed."""
    rows = read_jsonl(DOCS / "results/quickstart-objectives.jsonl")
    found = {r["method"]: r for r in rows if "minus_sft_continued" in r}
    shown = {m: FAMILIES.get(m, (m, INK)) for m in [*(m for m in FAMILIES if m in found), *sorted(found.keys() - FAMILIES.keys())]}
    seeds = {(r["method"], r["seed"]): r["metrics"] for r in rows if "seed" in r}
    panels = [
        _difference_panel(key, title, shown, found, seeds) for key, title in (("forward_kl", "Δ forward KL"), ("teacher_nll", "Δ teacher NLL"))
    ]
    caption = "Every objective less SFT continued: means over seeds with ±2 standard errors over prompts; small marks are single seeds."
    return Plot("knobs", caption, panels, columns=2, size=(490, 60 + 30 * len(shown)))


def _difference_panel(
    key: str, title: str, shown: dict[str, tuple[str, str]], found: dict[str, Any], seeds: dict[tuple[str, int], Any]
) -> Panel:
    differences = {m: found[m]["minus_sft_continued"] for m in shown}

    def draw(ax: Axes) -> None:
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1.6)
        for y, (method, (_, colour)) in enumerate(shown.items()):
            d = differences[method]
            mean, stderr = d["metrics"][key]["mean"], d["metrics"][key]["stderr"]
            ax.errorbar(mean, y, xerr=2 * stderr, fmt="o", color=colour, markersize=6, capsize=3, linewidth=2)
            singles = [seeds[method, s][key]["mean"] - seeds["sft_continued", s][key]["mean"] for s in d["seeds"]]
            if len(singles) > 1:
                ax.plot(singles, [y + 0.28] * len(singles), "|", color=colour, markersize=7)
        ax.set_yticks(range(len(shown)), [f"{name} ({len(differences[m]['seeds'])})" for m, (name, _) in shown.items()])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_title(f"{title}, nats a token")
        ax.set_xlabel("left of the dashed line: better than SFT continued")
        set_scale(ax, "x")
        ax.grid(axis="y", visible=False)

    told = "; ".join(f"{shown[m][0]} {d['metrics'][key]['mean']:+.2f}" for m, d in differences.items())
    return Panel(f"{title} against SFT continued: {told}.", draw)


if __name__ == "__main__":
    main()
