"""Make the tables of docs/step.md from docs/results/step-parts.jsonl."""

from collections.abc import Sequence
from typing import Any

from doc_tables import number, table

Rows = Sequence[dict[str, Any]]
MEGA, SMOLLM2_VOCAB = 1e6, 49_152


def of_kind(rows: Rows, kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind."""
    return [row for row in rows if row["kind"] == kind]


def columns_table(rows: Rows) -> str:
    """Return the shares of padded slots, by text and by how batches are drawn."""
    lines = []
    for row in of_kind(rows, "padding"):
        if row["p"] == 0.95 and row["cache"]["max_candidates"] is not None:
            lines.append([f"Dolly, the teacher's answers to 64 tokens, {row['order']}", *_shares(row)])
    names = {"dolly": "Dolly", "gsm8k": "GSM8K"}
    for row in of_kind(rows, "lengths"):
        lines.append([f"{names[row['data']]}, its own answers to {row['longest']} tokens, {row['order']}", *_shares(row)])
    return table(["text, and order of the batches", "columns", "prompts", "responses", "columns, if contiguous"], lines)


def _shares(row: dict[str, Any]) -> list[str]:
    return [f"{row['padded'][name]:.1%}" for name in ("columns", "prompts", "responses", "contiguous")]


def candidates_table(rows: Rows) -> str:
    """Return the candidate slots for each real candidate, and the size of a batch."""
    lines = []
    for row in of_kind(rows, "padding"):
        if row["order"] == "random":
            found = row["slots"]
            slots = [number(found[name] / found["real"], 1) for name in ("batch", "response")]
            sizes = [number(found[name] / found["batches"] / MEGA, 2) for name in ("bytes padded", "bytes ragged")]
            lines.append([_cap(row), f"{row['p']:g}", *slots, *sizes])
    return table(["candidates at most", "p", "slots ÷ real, batch", "response", "MB padded", "MB ragged"], lines)


def _cap(row: dict[str, Any]) -> str:
    most = row["cache"]["max_candidates"]
    return "no limit" if most is None else str(most)


def collation_table(rows: Rows) -> str:
    """Return the milliseconds to read and to collate a batch."""
    lines = []
    for row in of_kind(rows, "padding"):
        if row["order"] == "random":
            times = [_pair(row["milliseconds"][name]) for name in ("read", "one by one", "padded", "ragged")]
            lines.append([_cap(row), f"{row['p']:g}", *times])
    return table(["candidates at most", "p", "reading", "padded one by one", "padded at once", "ragged"], lines)


def _pair(values: Sequence[float]) -> str:
    return f"{values[0]:.1f} ± {values[1]:.1f}"


def loader_table(rows: Rows) -> str:
    """Return how long a step waits for its batch."""
    lines = [["ragged" if not r["padded"] else "padded", str(r["workers"]), _pair(r["wait"])] for r in of_kind(rows, "loader")]
    return table(["candidates", "workers", "ms that a step waits"], lines)


def whole_table(rows: Rows) -> str:
    """Return whole steps ÷ those of the plain Trainer."""
    lines = []
    for r in of_kind(rows, "step"):
        *objective, head = r["name"].split(", ")
        vocab = SMOLLM2_VOCAB if r["vocab"] is None else r["vocab"]
        objective[0] = f"`{objective[0]}`"
        lines.append([", ".join(objective), f"`{head}`", f"{vocab:,}", _middle(r["ratio"]), _middle(r["seconds_of_trainer"])])
    return table(["objective", "head", "V", "step ÷ SFT step", "seconds of the SFT step"], lines)


def _middle(quarters: Sequence[float]) -> str:
    low, middle, high = quarters
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def attention_table(rows: Rows) -> str:
    """Return eager attention ÷ sdpa."""
    lines = [[f"{r['rows']} × {r['length']}", _middle(r["ratio"]), _middle(r["seconds"])] for r in of_kind(rows, "attention")]
    return table(["tokens", "eager ÷ sdpa", "seconds by sdpa"], lines)


def compile_table(rows: Rows) -> str:
    """Return steps with compiled layers ÷ without."""
    lines = []
    for r in of_kind(rows, "compile"):
        first = ", ".join(f"{x:.0f}" for x in r["walls_of_the_first"][:4])
        lines.append([_middle(r["ratio"]), str(r["steps"]), first, f"{r['seconds_plain'][1]:.1f}"])
    return table(["compiled ÷ plain", "steps", "seconds of the first steps, compiled", "of a plain one"], lines)


TABLES = {
    "step-columns": columns_table,
    "step-candidates": candidates_table,
    "step-collation": collation_table,
    "step-loader": loader_table,
    "step-whole": whole_table,
    "step-attention": attention_table,
    "step-compile": compile_table,
}
