"""Tabulate and draw what the heads cost: the rows of head.py and candidate_rows.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from doc_tables import MISSING, table
from matplotlib.axes import Axes

from tdistill.pages.lines import lines_of
from tdistill.pages.svg import Panel, Plot, set_scale

HEADS = ("full", "chunked", "candidates", "sampled")
BASE = {"tokens": 1024, "vocab": 151665, "width": 512, "dtype": "float32"}
SIZES: dict[str, dict[str, Any]] = {
    "as above": {},
    "H = 64": {"width": 64},
    "H = 1,024": {"width": 1024},
    "N = 2,048": {"tokens": 2048},
    "bfloat16": {"dtype": "bfloat16"},
}
SHOWN = ("nll", "reverse_kl, tail", "reverse_kl, proj", "reverse_kl, dense")
LIBRARIES: dict[str, Any] = {"tokens": 256, "vocab": 32768}
ALIKE = ("nll", "reverse_kl, dense", "jsd, dense", "forward_kl, tail", "jsd, tail")  # what other libraries compute too
CURVES = {  # line of the figure → head, objective
    "transformers' cross-entropy": ("transformers", "nll"),
    "full, tail": ("full", "reverse_kl, tail"),
    "chunked, tail": ("chunked", "reverse_kl, tail"),
    "sampled, tail": ("sampled", "reverse_kl, tail"),
    "candidates, proj": ("candidates", "reverse_kl, proj"),
}
WAYS = {
    "union of the batch": "one product, union of the batch",
    "union of a response": "a product an answer, its union",
    "gathered": "pairs, `index_add_`",
    "bags": "pairs, `embedding_bag`",
    "sparse": "`sampled_addmm`, `embedding_bag`",
}
Rows = Sequence[Mapping[str, Any]]


def cost(row: Mapping[str, Any] | None) -> str:
    """Return the time of a row, divided by that of transformers' cross-entropy, and its memory in copies of the logits."""
    if row is None or "error" in row:
        return MISSING
    return f"{_digits(row['ratio'])}x, {_digits(row['allocated'])}"


def _digits(value: float) -> str:
    return f"{value:.{2 if value >= 0.095 else 3}f}".removeprefix("0")


def find(rows: Rows, key: tuple[str, str], by: str = "tdistill", **changed: Any) -> Mapping[str, Any] | None:
    """Return the row of a head or library and an objective, at the base size with some of it changed; None if there is none."""
    wanted = BASE | changed | {"by": by, "head": key[0], "objective": key[1]}
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def costs_table(rows: Rows) -> str:
    """Return a table of objectives by heads, at the base size."""
    found = [row["objective"] for row in rows if find([row], (row["head"], row["objective"])) and row["head"] == "full"]
    lines = [["transformers' cross-entropy", cost(find(rows, ("transformers", "nll"))), *[""] * (len(HEADS) - 1)]]
    lines += [[f"`{name}`", *(cost(find(rows, (head, name))) for head in HEADS)] for name in found]
    return table(["objective", *(f"`{head}`" for head in HEADS)], lines)


def sizes_table(rows: Rows) -> str:
    """Return a table of some objectives and heads by the sizes that were measured."""
    sizes = {title: changed for title, changed in SIZES.items() if find(rows, ("transformers", "nll"), **changed)}
    lines = []
    for name in SHOWN:
        for head in HEADS:
            cells = [cost(find(rows, (head, name), **changed)) for changed in sizes.values()]
            if set(cells) != {MISSING}:
                lines.append([f"`{name}`, `{head}`", *cells])
    return table(["objective, head", *sizes], lines)


def _both(row: Mapping[str, Any]) -> tuple[str, str]:
    return (MISSING, MISSING) if "error" in row else (f"{_digits(row['ratio'])}x", _digits(row["allocated"]))


def libraries_table(rows: Rows) -> str:
    """Return a table of other libraries' losses beside ours of the same objective."""
    lines = []
    for name in ALIKE:
        found = [row for row in rows if row["objective"] == name and find([row], (row["head"], name), row["by"], **LIBRARIES)]
        for row in found:
            if (row["head"], row["by"]) != ("transformers", "peer"):  # it is ours too
                title = f"tdistill, `{row['head']}`" if row["head"] in HEADS else row["head"]
                lines.append([f"`{name}`", title, *_both(row)])
    return table(["objective", "computed by", "time ÷ cross-entropy", "memory, copies"], lines)


def ways_table(rows: Rows) -> str:
    """Return a table of ways to compute the logits of candidates, in milliseconds, by N, at H = 512."""
    shown = [row for row in rows if row["width"] == 512 and row["p"] == 0.95]
    head = ["way", *(f"N = {row['tokens']:,}" for row in shown if row["dtype"] == "float32")]
    head += [f"bfloat16, N = {row['tokens']:,}" for row in shown if row["dtype"] == "bfloat16" and row["tokens"] == 1024]
    picked = [r for r in shown if r["dtype"] == "float32"] + [r for r in shown if r["dtype"] == "bfloat16" and r["tokens"] == 1024]
    lines = [["pairs of a token and a candidate", *(f"{row['pairs']:,}" for row in picked)]]
    lines += [["products with the union ÷ pairs", *(f"{row['tokens'] * row['union'] / row['pairs']:.0f}" for row in picked)]]
    for key, title in WAYS.items():
        lines.append([title, *(f"{1e3 * row['seconds'][key]:.1f} ms" if key in row["seconds"] else MISSING for row in picked)])
    return table(head, lines)


def vocabulary_plot(rows: Rows) -> Plot:
    """Plot time and memory over V: one line for each head."""
    lines = lines_of(list(CURVES))
    vocabs = sorted({row["vocab"] for row in rows if find([row], ("sampled", "reverse_kl, tail"), vocab=row["vocab"])})
    found = {name: [find(rows, key, vocab=v) for v in vocabs] for name, key in CURVES.items()}

    def panel(title: str, unit: str, value: Any) -> Panel:
        series = {name: [value(row) for row in own if row is not None] for name, own in found.items()}

        def draw(ax: Axes) -> None:
            for name, values in series.items():
                ax.plot(vocabs, values, "o", linestyle=lines[name].dash, color=lines[name].colour, markersize=4, linewidth=1.6)
            ax.set_title(title)
            ax.set_xlabel("V")
            ax.set_ylabel(unit)
            set_scale(ax, "x", log=True)
            set_scale(ax, "y", log=True)

        told = "; ".join(f"{name}: " + ", ".join(f"{v:,}: {x:.3g}" for v, x in zip(vocabs, own, strict=True)) for name, own in series.items())
        return Panel(f"{title}, {unit}, by V. {told}.", draw)

    def beyond(row: Mapping[str, Any]) -> float:
        """Return the megabytes of a row, without the gradient of the head's weight."""
        return (row["allocated"] * row["tokens"] - row["width"]) * row["vocab"] * 4 / 1e6

    panels = [
        panel("Time, forward and backward", "seconds of one core", lambda row: row["cpu_seconds"]),
        panel("Memory beside the weight's gradient", "MB", beyond),
    ]
    caption = "The head of 1,024 tokens by the size of the vocabulary: H = 512, float32."
    return Plot("head", caption, panels, columns=2, size=(420, 270), legend=list(lines.values()))
