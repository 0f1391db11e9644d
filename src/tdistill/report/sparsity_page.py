"""Build the page of ``tdistill sparsity``: how concentrated the teacher is, what each p costs and leaves out, and which p to take."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from tdistill.evaluation.sparsity import TOP_PS, StateSparsity
from tdistill.mdp.bellman import kappa
from tdistill.pages.parts import Document, Section
from tdistill.pages.svg import Line, Panel, Plot, set_scale
from tdistill.pages.tables import Cell, Table, format_number, right_aligned
from tdistill.report.data import Sparsity
from tdistill.report.plots import COLOURS, sparsity_plot
from tdistill.report.tables import sparsity_table

# A candidate is an id (uint32) and a log-prob (float16) in the cache, before compression.
BYTES_PER_CANDIDATE = 6
# Bytes that a cached token may cost: about the hidden state of a small model.
BUDGET_BYTES = 1024
GAMMA = 0.99
POSITIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ENTROPY_GROUPS = 8


@dataclass(frozen=True)
class Cut:
    """Hold the means over states for one way to cut the candidates: a p or a rule."""

    name: str
    size: float
    cost_bytes: float
    tail_loss: float  # −log m, nats
    hidden: float  # (1 − m)·H(tail), nats
    hidden_share: float  # of the teacher's entropy
    least_mass: float


def cuts(found: StateSparsity) -> list[Cut]:
    """Return every p and rule that was measured."""
    out = []
    for name, a in found.cuts.items():
        size, hidden = float(a["size"].mean()), float(a["hidden"].mean())
        share = hidden / max(float(found.entropy.mean()), 1e-12)
        out.append(Cut(name, size, BYTES_PER_CANDIDATE * size, float(-np.log(a["mass"]).mean()), hidden, share, float(a["mass"].min())))
    return out


def recommended(found: StateSparsity) -> tuple[float, str]:
    """Return the largest measured p whose candidates fit ``BUDGET_BYTES`` a token (else the smallest), and the reason."""
    by_name = {c.name: c for c in cuts(found)}
    top_p = {p: by_name[f"p={p:g}"] for p in sorted(TOP_PS)}
    fitting = [p for p, cut in top_p.items() if cut.cost_bytes <= BUDGET_BYTES]
    chosen = fitting[-1] if fitting else min(top_p)
    reason = f"Take p = {chosen:g}: {_price(top_p[chosen])}."
    if not fitting:
        return chosen, f"{reason} No p measured fits {BUDGET_BYTES} bytes a token."
    larger = [p for p in top_p if p > chosen]
    if not larger:
        return chosen, f"{reason} It is the largest p measured, and fits {BUDGET_BYTES} bytes a token."
    return chosen, f"{reason} The next, p = {larger[0]:g}, goes above {BUDGET_BYTES} bytes a token: {_price(top_p[larger[0]])}."


def _price(cut: Cut) -> str:
    return f"{cut.size:.1f} candidates and {cut.cost_bytes:.0f} bytes a token, with {cut.hidden_share:.0%} of the entropy hidden in the tail"


def cuts_table(found: StateSparsity) -> Table:
    """Build the table of cost and loss of every p and rule."""
    header = ["cut", "candidates", "bytes a token", "−log m, nats", "hidden, nats", "hidden, %", "least m", f"κ(least m), γ = {GAMMA:g}"]
    rows = [
        [
            Cell(c.name),
            Cell(format_number(c.size, 1)),
            Cell(format_number(c.cost_bytes, 0)),
            Cell(format_number(c.tail_loss, 4)),
            Cell(format_number(c.hidden, 3)),
            Cell(format_number(100.0 * c.hidden_share, 1)),
            Cell(format_number(c.least_mass, 3)),
            Cell(format_number(kappa(min(c.least_mass, 1.0), GAMMA), 2)),
        ]
        for c in cuts(found)
    ]
    caption = (
        "Means over states. Bytes a token: in the cache, before compression. m: the probability that the candidates keep. Hidden: "
        "(1 − m)·H(tail), the entropy that is lost if the other tokens are one bucket; in % of the teacher's entropy. κ: the bound on the "
        "value lost, for the state that keeps least."
    )
    return Table(caption, header, rows, right_aligned(len(header)))


def tradeoff_plot(found: StateSparsity) -> Plot:
    """Plot tail loss against candidates: p against the adaptive rule."""
    lines = [Line("top-p", COLOURS[0], "-"), Line("adaptive", COLOURS[1], "--")]
    groups = {"p=": lines[0], "adaptive": lines[1]}
    found_cuts = cuts(found)

    def panel(title: str, value: str) -> Panel:
        def draw(ax: Axes) -> None:
            for prefix, line in groups.items():
                points = sorted((c.size, getattr(c, value)) for c in found_cuts if c.name.startswith(prefix))
                ax.plot(*zip(*points, strict=True), line.dash, color=line.colour, marker="o", markersize=4, linewidth=1.6)
            ax.set_title(title)
            ax.set_xlabel("mean candidates a state, log scale")
            set_scale(ax, "x", log=True)
            set_scale(ax, "y", log=True)

        return Panel(f"{title} against the mean number of candidates.", draw)

    panels = [panel("tail loss −log m, nats", "tail_loss"), panel("hidden from a tail bucket, nats", "hidden")]
    return Plot(
        "tradeoff",
        "What is lost (vertical) against the number of candidates (horizontal). Lower and further left is better.",
        panels,
        2,
        legend=lines,
    )


def where_plot(found: StateSparsity, p: float = 0.8) -> Plot:
    """Plot |A_p| by position in the response, and by the teacher's entropy."""
    size = found.cuts[f"p={p:g}"]["size"]
    edges = np.quantile(found.entropy, np.linspace(0, 1, ENTROPY_GROUPS + 1))
    by_entropy = np.clip(np.searchsorted(edges, found.entropy, side="right") - 1, 0, ENTROPY_GROUPS - 1)
    starts = [s for s in POSITIONS if (found.position >= s).any()]
    by_position = np.searchsorted(starts, found.position, side="right") - 1

    def panel(title: str, xlabel: str, group: np.ndarray, xs: np.ndarray) -> Panel:
        present = [g for g in range(len(xs)) if (group == g).any()]
        quantiles = np.array([np.quantile(size[group == g], [0.5, 0.9]) for g in present])

        def draw(ax: Axes) -> None:
            for column, (dash, name) in enumerate((("-", "median"), ("--", "90th percentile"))):
                ax.plot(xs[present], quantiles[:, column], dash, color=COLOURS[column], marker="o", markersize=4, label=name)
            ax.legend(frameon=False)
            ax.set_title(title)
            ax.set_xlabel(xlabel)
            set_scale(ax, "x")
            set_scale(ax, "y", log=True)

        return Panel(f"{title}: medians {', '.join(f'{q:g}' for q in quantiles[:, 0])}.", draw)

    centres = np.array([found.entropy[by_entropy == g].mean() if (by_entropy == g).any() else 0.0 for g in range(ENTROPY_GROUPS)])
    panels = [
        panel(f"|A_p| at p = {p:g} by position", "token in the response", by_position, np.array(starts, dtype=float)),
        panel(f"|A_p| at p = {p:g} by entropy", "teacher's entropy, nats", by_entropy, centres),
    ]
    return Plot("where", "Number of candidates by position in the response, and by the teacher's entropy.", panels, 2)


def sparsity_document(found: StateSparsity, facts: Mapping[str, str]) -> Document:
    """Return the whole page."""
    sizes = {p: found.cuts[f"p={p:g}"]["size"].tolist() for p in TOP_PS}
    shape = Sparsity(len(found.entropy), found.vocab_size, found.top_k_mass, sizes)
    overall = sparsity_plot(shape)
    assert overall is not None
    sections = [
        Section("recommended", "Which p", [recommended(found)[1], cuts_table(found), tradeoff_plot(found)]),
        Section("sizes", "How many candidates", [overall, sparsity_table(shape)]),
        Section("where", "Where there are many candidates", [where_plot(found)]),
    ]
    return Document("How sparse the teacher is", facts, sections)


def rows(found: StateSparsity) -> list[Mapping[str, object]]:
    """Return the numbers behind the page, one row for each cut."""
    head: dict[str, object] = {"n_tokens": len(found.entropy), "vocab_size": found.vocab_size, "entropy": float(found.entropy.mean())}
    head["top_k_mass"] = found.top_k_mass
    return [head, *({"cut": c.name, **{k: v for k, v in vars(c).items() if k != "name"}} for c in cuts(found))]
