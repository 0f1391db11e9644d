"""Make the tables of the quickstart's pair and of `make demo` from their rows."""

from collections.abc import Sequence
from typing import Any

from doc_tables import MISSING, estimate, number, table

TITLES = {
    "teacher_nll": ("teacher NLL ↓", 3),
    "reverse_kl": ("reverse KL ↓", 3),
    "forward_kl": ("forward KL ↓", 3),
    "rouge_l": ("ROUGE-L ↑", 1),
    "distinct_2": ("distinct-2", 3),
    "student_mass": ("mass on A_p ↑", 3),
    "entropy": ("entropy", 3),
    "mean_length": ("length", 1),
}
SUMMARY = "sd_over_seeds"  # the key that only the row of all seeds of a method has
MEGABYTE = 1e6


def demo_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Return a table of every system of a finished run."""
    lines = [[f"`{row['system']}`", *(_metric(row["metrics"], m) for m in metrics)] for row in rows if "system" in row]
    return table(["system", *(TITLES[m][0] for m in metrics)], lines)


def differences_table(rows: Sequence[dict[str, Any]], a: str, b: str) -> str:
    """Return a table of the differences of two systems, paired over prompts."""
    found = {row["metric"]: row["paired_difference"] for row in rows if (row.get("a"), row.get("b")) == (a, b)}
    lines = [[title, estimate(found[m]["mean"], found[m]["stderr"], digits, True)] for m, (title, digits) in TITLES.items() if m in found]
    return table(["metric", f"`{a}` − `{b}`"], lines)


def stages_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the time that each stage took, and of the peak memory until its end."""
    found = [row for row in rows if "stage" in row]
    lines = [[f"`{row['stage']}`", f"{row['seconds']:.0f}", f"{row['peak_memory_bytes'] / MEGABYTE / 1000:.2f}"] for row in found]
    return table(["stage", "seconds", "peak memory so far, GB"], lines)


def objectives_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Return a table of methods: each metric with its standard error over prompts, and its standard deviation over seeds in brackets."""
    lines = []
    for row in _summaries(rows):
        spread = row[SUMMARY] if len(row["seeds"]) > 1 else {}
        cells = [_metric(row["metrics"], m) + (f" [{spread[m]:.{TITLES[m][1]}f}]" if m in spread else "") for m in metrics]
        lines.append([f"`{row['method']}`", str(len(row["seeds"])), *cells])
    return table(["method", "seeds", *(TITLES[m][0] for m in metrics)], lines)


def against_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Return a table of the methods' differences from SFT continued, paired by prompt and seed."""
    lines = []
    for row in _summaries(rows):
        if "minus_sft_continued" in row:
            found = row["minus_sft_continued"]["metrics"]
            lines.append([f"`{row['method']}`", str(len(row["seeds"])), *(_metric(found, m, signed=True) for m in metrics)])
    return table(["method", "seeds", *(f"Δ {TITLES[m][0]}" for m in metrics)], lines)


def _summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [row for row in rows if SUMMARY in row]
    return sorted(found, key=lambda row: row["metrics"]["teacher_nll"]["mean"])


def selection_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the settings that were tried on the validation prompts."""
    lines = []
    for row in rows:
        if row["system"] == "teacher":
            continue
        trained = "learning_rate" in row
        ps = f"{row['rollout.teacher_top_p']:g}" + (f", {row['train.teacher_top_p']:g}" if trained else "")
        setting = f"{row['learning_rate']:g}, {row['max_steps']}" if trained else MISSING
        metrics = [_metric(row["metrics"], m) for m in ("forward_kl", "teacher_nll", "rouge_l")]
        lines.append([f"`{row['system'].rpartition('-')[0] or row['system']}`", ps, setting, *metrics])
    head = ["method", "p: roll-outs, training", "rate, steps", *(TITLES[m][0] for m in ("forward_kl", "teacher_nll", "rouge_l"))]
    return table(head, lines)


def steps_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of each objective's loss over its first steps, its largest gradient norm, and the time of a step."""
    lines = []
    for row in rows:
        low, high = row["ratio_quartiles"]
        loss = f"{row['loss_before']:.4g} → {row['loss_after']:.4g}"
        time = f"{row['ratio_to_nll']:.2f} ({low:.2f}–{high:.2f})"
        lines.append([f"`{row['method']}`", f"{row['learning_rate']:g}", loss, f"{row['grad_norm_max']:.3g}", time])
    return table(["objective", "learning rate", "own loss before → after", "largest gradient norm", "step time ÷ `nll`'s"], lines)


def batches_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of how many answers stay the same when they are generated in batches of another size."""
    lines = [[row["dtype"], str(row["batch_sizes"][1]), f"{row['equal_responses']:.1%}", f"{row['equal_tokens']:.1%}"] for row in rows]
    return table(["dtype", "batch size", "equal answers", "equal tokens"], lines)


def _metric(metrics: dict[str, Any], name: str, signed: bool = False) -> str:
    if name not in metrics:
        return MISSING
    digits = TITLES[name][1]
    error = f" ± {number(metrics[name]['stderr'], digits)}"
    return number(metrics[name]["mean"], digits, signed) + error
