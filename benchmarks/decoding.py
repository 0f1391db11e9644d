"""Compare the same students at several decoding temperatures: what is left of a difference at equal entropy of the texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from doc_tables import MISSING, estimate, number, p_text, table

from tdistill.compare.frontier import READ, AtBaseline, at_baseline
from tdistill.statistics.equal_entropy import TemperatureCurve, temperature_curve
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared, pooled

SHOWN = {"teacher_nll": ("teacher NLL ↓", 3), "rouge_l": ("ROUGE-L ↑", 1), "entropy": ("entropy", 2), "distinct_2": ("distinct-2", 3)}


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, TemperatureCurve]:
    """Group the rows of `temperatures.py` by method, or by system where a system has no training seeds."""
    found: dict[str, dict[Any, dict[float, Any]]] = {}
    for row in rows:
        found.setdefault(row.get("method", row["system"]), {}).setdefault(row.get("seed"), {})[row["temperature"]] = row["scores"]
    return {name: temperature_curve(seeds) for name, seeds in found.items()}


def decoding_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table with a line for each method and decoding temperature at which all its seeds were measured."""
    lines = [
        [f"`{name}`", f"{t:g}", *(_pooled(seeds, metric, digits) for metric, (_, digits) in SHOWN.items())]
        for name, curve in curves(rows).items()
        for t, seeds in curve.items()
    ]
    return table(["method", "T", *(title for title, _ in SHOWN.values())], lines)


def _pooled(seeds: Mapping[Any, Any], metric: str, digits: int) -> str:
    found = pooled({seed: scores[metric] for seed, scores in seeds.items()})
    return estimate(found.mean, found.stderr, digits)


def at_equal_entropy(rows: Sequence[dict[str, Any]], baseline: str) -> list[AtBaseline]:
    """Read every method at the entropy of the baseline, for each temperature of the baseline. Methods that do not reach it are left out."""
    return [row for row in at_baseline(curves(rows), baseline) if row.values]


def written_by_compare(rows: Sequence[dict[str, Any]]) -> list[AtBaseline]:
    """Read the comparisons at equal entropy that `tdistill compare` wrote."""
    found = []
    for row in (r for r in rows if r["kind"] == "at_equal_entropy" and r["values"]):
        values = {m: Estimate(**v) for m, v in row["values"].items()}
        differences = {m: Compared(**d | {"difference": Estimate(**d["difference"])}) for m, d in row["differences"].items()}
        found.append(AtBaseline(**{k: v for k, v in row.items() if k != "kind"} | {"values": values, "differences": differences}))
    return found


def equal_entropy_table(rows: Sequence[AtBaseline]) -> str:
    """Return a table of methods at equal entropy, for each temperature of the baseline."""
    head = ["method", "baseline's T (entropy)", "own T", "teacher NLL ↓", "Δ teacher NLL (p)", "Δ ROUGE-L (p)"]
    lines = [
        [f"`{r.method}`", f"{r.baseline_temperature:g} ({r.level:.2f})", f"{r.temperature:.2f}", _value(r, "teacher_nll"), *differences(r)]
        for r in rows
        if r.temperature is not None
    ]
    return table(head, lines)


def one_temperature_table(rows: Sequence[AtBaseline], temperature: float) -> str:
    """Return a table of the students at the entropy that the baseline has at one temperature."""
    head = ["method", "own T", "teacher NLL ↓", "Δ teacher NLL (p)", "ROUGE-L ↑", "Δ ROUGE-L (p)"]
    lines = []
    for r in rows:
        if r.baseline_temperature == temperature and r.temperature is not None and r.method != "teacher":
            nll, rouge = differences(r)
            lines.append([f"`{r.method}`", f"{r.temperature:.2f}", _value(r, "teacher_nll"), nll, _value(r, "rouge_l"), rouge])
    return table(head, lines)


def ahead_table(rows: Sequence[dict[str, Any]], pairs: Mapping[str, str]) -> str:
    """Return a table of what looking ahead adds to its own cloning at equal entropy.

    Args:
        rows: the rows of `temperatures.py`.
        pairs: method → the method that it is compared with. Pairs that were not measured are left out.
    """
    lines, found = [], curves(rows)
    for name, base in pairs.items():
        if len(found.get(name, {})) < 2 or len(found.get(base, {})) < 2:
            continue
        for r in at_baseline({base: found[base], name: found[name]}, base):
            if r.method == name and r.differences:
                seeds = next(iter(r.differences.values())).seeds[0]
                temperatures = f"{r.temperature:.2f} and {r.baseline_temperature:g}"
                lines.append([f"`{name}` − `{base}`", str(seeds), f"{r.level:.2f}", temperatures, *differences(r)])
    return table(["difference", "seeds", "entropy", "T of both", "Δ teacher NLL (p)", "Δ ROUGE-L (p)"], lines)


def differences(row: AtBaseline) -> list[str]:
    """Return a method's differences from the baseline in teacher NLL and ROUGE-L, each with standard error and p."""
    cells = []
    for metric in READ:
        found, digits = row.differences.get(metric), SHOWN[metric][1]
        if found is None:
            cells.append(MISSING)
        else:
            error = f" ± {number(found.difference.stderr, digits)}"
            cells.append(f"{number(found.difference.mean, digits, signed=True)}{error} ({p_text(found.p_value)})")
    return cells


def _value(row: AtBaseline, metric: str) -> str:
    found = row.values[metric]
    return estimate(found.mean, found.stderr, SHOWN[metric][1])
