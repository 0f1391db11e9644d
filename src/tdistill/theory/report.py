"""Write ``theory.md``, its figures, the self-contained ``theory.html`` and the rows ``theory.jsonl``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdistill.pages.document import write_document
from tdistill.pages.parts import Document, Section
from tdistill.pages.svg import Plot
from tdistill.pages.tables import Align, Cell, Table, format_number
from tdistill.runtime.files import write_jsonl
from tdistill.theory.estimator_report import estimator_section
from tdistill.theory.plots import LOOSENESS_P, STAGES, Rows, all_plots

TITLE = "The top-p MDP, checked exactly"
ROWS_FILE = "theory.jsonl"

TEXTS = {
    "propositions": (
        "P1: the top-p soft Bellman operator is a γ-contraction over supported pairs. P2: projecting the teacher onto A_p costs at most κ(p). "
        "P3: Q of the projected teacher ≤ Q*_p ≤ Q*. P4: the best policy on A_p loses at most κ(p) = −γ/(1−γ)·log p. A violation is an "
        "excess above rounding. Keeping the fewest tokens with −log(kept mass) ≤ ε in every state (adaptive) is A_p at p = exp(−ε)."
    ),
    "looseness": (
        "Exactly, Q*(s,a) − Q^{proj_p π*}(s,a) = E Σ_{k≥1} γᵏ·(−log kept mass(s_{t+k})) along the projected policy. κ(p) replaces each "
        "term by −log p and lets the sum run for ever; one state that loops onto itself and keeps exactly p attains it."
    ),
    "bias": (
        "Top-p IQ-Learn with exact expectations and Newton's method, so that only the loss itself can be wrong. For α → ∞ it ends at the "
        "expert projected onto A_p, and its reward at the expert's up to potential "
        "shaping (the last column), except at pairs that the expert all but never visits, where nothing is to be learnt."
    ),
    "compounding": (
        "A token automaton: the teacher keeps to a road of 8 states and knows the way back from 16 others. The student sees 6 features of "
        "each state. Teacher's text: students learn from the teacher's roll-outs. Own text: from their own, scored by the teacher. Exact: "
        "the regret's own terms by dynamic programming, with and without gradient through the states visited. Regret is exact; ± is the "
        "standard error over seeds."
    ),
}


def write_theory(data: dict[str, Rows], facts: dict[str, Any], out_dir: Path) -> None:
    """Write the pages, the figures and the rows into ``out_dir``. The rows come last: they mark the directory as complete."""
    shown = {key: str(value) for key, value in facts.items()}
    sections = [*_sections(all_plots(data), all_tables(data)), estimator_section(data["estimators"])]
    write_document(out_dir, "theory", Document(TITLE, shown, sections))
    rows = [{"section": key, **row, "provenance": facts} for key, section in data.items() for row in section]
    write_jsonl(out_dir / ROWS_FILE, rows)


def _sections(plots: dict[str, Plot], tables: dict[str, Table]) -> list[Section]:
    return [
        Section("propositions", "P1–P4 on random MDPs", [TEXTS["propositions"], tables["propositions"], plots["tightness"]]),
        Section("gap", "What the cut costs", [plots["gap"], plots["kept"], tables["kept"]]),
        Section("looseness", "Why the bound is loose", [TEXTS["looseness"], plots["looseness"], tables["looseness"]]),
        Section("bias", "The bias of a finite α", [TEXTS["bias"], tables["bandit"], plots["bias"], tables["bias"]]),
        Section("compounding", "Compounding errors", [TEXTS["compounding"], plots["compounding"], tables["compounding"], tables["on_and_off"]]),
    ]


def all_tables(data: dict[str, Rows]) -> dict[str, Table]:
    """Return every table, by key."""
    top_p = [row for row in data["cuts"] if row["rule"] == "top_p"]
    cuts = {key: (STAGES[key], 3) for key in ("kappa", "gap_projected", "gap_restricted")}
    cuts |= {"gap_restricted_max": ("largest Q* − Q*_p", 3), "actions_kept": ("actions kept", 1)}
    bias = {"p": ("p", 1), "gamma": ("γ", 2), "alpha": ("α", 1), "tv": ("TV from the expert", 5), "tv_stderr": ("± SE", 5)}
    bias |= {"reward_rms": ("rms reward", 2), "shaping_residual_max": ("reward error up to shaping, largest", 5)}
    return {
        "propositions": propositions_table(data["propositions"]),
        "kept": _table("Medians over the MDPs, in nats; actions kept of 32.", top_p, {"gamma": ("γ", 2), "parameter": ("p", 3), **cuts}),
        "looseness": _table(
            f"From κ to the measured gap at p = {LOOSENESS_P:g}: medians over the MDPs, in nats.",
            [row for row in top_p if row["parameter"] == LOOSENESS_P],
            {"gamma": ("γ", 2), **{key: (title, 3) for key, title in STAGES.items()}},
        ),
        "bandit": bandit_table(data["bandit"]),
        "bias": _table("Means over random MDPs of 6 states and 5 actions.", data["bias"], bias),
        "compounding": horizon_table(data["compounding"]),
        "on_and_off": longest_table(data["compounding"]),
    }


def _table(caption: str, rows: Rows, columns: dict[str, tuple[str, int]]) -> Table:
    """Build a table with one column per key, with its title and decimals."""
    body = [[Cell(format_number(row[key], decimals)) for key, (_, decimals) in columns.items()] for row in rows]
    return Table(caption, [title for title, _ in columns.values()], body, _align(len(columns), "right"))


def _align(n: int, first: Align = "left") -> list[Align]:
    rest: list[Align] = ["right"] * (n - 1)
    return [first, *rest]


def propositions_table(rows: Rows) -> Table:
    """Build the table of violations and tightness by candidate rule."""
    header = ["candidates", "MDPs", "P1", "P2", "P3", "P4", "P4 gap/κ: 5 %", "median", "95 %", "largest", "error of the identity"]
    body = [
        [Cell(row["rule"]), Cell(f"{row['instances']:,}")]
        + [Cell(str(max(row[f"violations_{k}"] for k in keys))) for keys in (("p1", "p1_measured"), ("p2",), ("p3",), ("p4",))]
        + [Cell(format_number(row[f"gap_restricted/kappa_{q:g}"], 4)) for q in (0.05, 0.5, 0.95, 1.0)]
        + [Cell(f"{row['largest_identity_error']:.0e}".replace("-", "−"))]
        for row in rows
    ]
    return Table("Violations of each proposition, and how much of κ the measured gap uses.", header, body, _align(len(header)))


def bandit_table(rows: Rows) -> Table:
    """Build the table of the exact minimiser for each α on a bandit."""
    body = [[Cell(format_number(row["alpha"], 1)), Cell(" / ".join(f"{x:.2f}" for x in row["policy"]))] for row in rows]
    return Table(
        "One choice among four tokens, whose expert takes them with .70/.20/.07/.03.", ["α", "exact minimiser"], body, _align(2, "right")
    )


def horizon_table(rows: Rows) -> Table:
    """Build the table of regret per token, mean ± standard error over seeds, by method and horizon."""
    horizons = sorted({row["horizon"] for row in rows})
    found = {(row["method"], row["horizon"]): row for row in rows}
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = [found[method, h] for h in horizons]
        body.append([Cell(method), *(Cell(_plus_minus(r["regret"] / r["horizon"], r["regret_stderr"] / r["horizon"])) for r in cells)])
    caption = f"Regret per token by horizon H, in nats: mean ± standard error over {rows[0]['seeds']} seeds. Lower is better."
    return Table(caption, ["method", *(f"H = {h}" for h in horizons)], body, _align(1 + len(horizons)))


def longest_table(rows: Rows) -> Table:
    """Build the table of the longest horizon: each method's losses on and off the road, and its paired difference from ``reverse_kl``."""
    longest = max(row["horizon"] for row in rows)
    shown = [row for row in rows if row["horizon"] == longest]
    base = next(row["regrets"] for row in shown if row["method"] == "reverse_kl")
    body = []
    for row in shown:
        difference = [(a - b) / longest for a, b in zip(row["regrets"], base, strict=True)]
        cells = [(row[key], row[f"{key}_stderr"]) for key in ("cloning_error", "off_road")]
        lost = (row["return_lost"] / longest, row["return_lost_stderr"] / longest)
        body.append([Cell(row["method"]), *(Cell(_plus_minus(*pair)) for pair in (*cells, lost, _paired(difference)))])
    header = ["method", "KL on the teacher's states", "share off the road", "task reward lost per token", "regret/H − reverse_kl"]
    return Table(f"At H = {longest}: mean ± standard error over seeds; the last column is paired.", header, body, _align(len(header)))


def _paired(x: Sequence[float]) -> tuple[float, float]:
    mean = sum(x) / len(x)
    if len(x) < 2:
        return mean, float("nan")
    return mean, (sum((v - mean) ** 2 for v in x) / (len(x) - 1) / len(x)) ** 0.5


def _plus_minus(mean: float, stderr: float) -> str:
    return f"{format_number(mean, 3)} ± {format_number(stderr, 3)}"
