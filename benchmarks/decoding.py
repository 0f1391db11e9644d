"""The same students at several decoding temperatures: what is left of a difference at equal entropy of the texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from tdistill.compare.frontier import READ, AtBaseline, at_baseline, difference_cell, frontier_table
from tdistill.compare.table import title
from tdistill.pages.markdown import to_markdown
from tdistill.pages.tables import Align, Cell, Table, format_estimate
from tdistill.statistics.equal_entropy import TemperatureCurve, temperature_curve
from tdistill.statistics.estimate import Estimate
from tdistill.statistics.pooling import Compared, pooled

SHOWN = ("teacher_nll", "rouge_l", "entropy", "distinct_2")


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, TemperatureCurve]:
    """The rows of `temperatures.py` by method, or by system where it has no training seeds."""
    found: dict[str, dict[Any, dict[float, Any]]] = {}
    for row in rows:
        found.setdefault(row.get("method", row["system"]), {}).setdefault(row.get("seed"), {})[row["temperature"]] = row["scores"]
    return {name: temperature_curve(seeds) for name, seeds in found.items()}


def decoding_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a method and decoding temperature at which all its seeds were measured."""
    header = ["method", "seeds", "T", *map(title, SHOWN)]
    lines = [
        [Cell(name), Cell(str(len(seeds))), Cell(f"{t:g}"), *(Cell(format_estimate(_pooled(seeds, m))) for m in SHOWN)]
        for name, curve in curves(rows).items()
        for t, seeds in curve.items()
    ]
    return _markdown(header, lines)


def _pooled(seeds: Mapping[Any, Any], metric: str) -> Any:
    return pooled({seed: scores[metric] for seed, scores in seeds.items()})


def equal_entropy_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Every method where its texts are as spread as the baseline's at each of its temperatures."""
    return to_markdown(frontier_table(at_baseline(curves(rows), baseline)))


def compared_table(rows: Sequence[dict[str, Any]]) -> str:
    """What `tdistill compare` wrote of methods at equal entropy."""
    found = []
    for row in (r for r in rows if r["kind"] == "at_equal_entropy"):
        values = {m: Estimate(**v) for m, v in row["values"].items()}
        differences = {m: Compared(**d | {"difference": Estimate(**d["difference"])}) for m, d in row["differences"].items()}
        found.append(AtBaseline(**{k: v for k, v in row.items() if k != "kind"} | {"values": values, "differences": differences}))
    return to_markdown(frontier_table(found))


def ahead_table(rows: Sequence[dict[str, Any]], pairs: Mapping[str, str]) -> str:
    """What looking ahead adds to its own cloning at equal entropy: method → what it is compared with."""
    header = ["difference", "seeds", "entropy", "T", *(f"Δ {title(m)} (p)" for m in READ)]
    lines, found = [], curves(rows)
    for name, base in pairs.items():
        if len(found.get(name, {})) < 2 or len(found.get(base, {})) < 2:  # not measured here
            continue
        for r in at_baseline({base: found[base], name: found[name]}, base):
            if r.method == name and r.differences:
                seeds = next(iter(r.differences.values())).seeds[0]
                own = f"{r.temperature:.2f} and {r.baseline_temperature:g}"
                cells = [f"{name} − {base}", str(seeds), f"{r.level:.2f}", own]
                lines.append([*map(Cell, cells), *(difference_cell(r, m) for m in READ)])
    return _markdown(header, lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    align: list[Align] = ["left", *["right"] * (len(header) - 1)]  # type: ignore[list-item]
    return to_markdown(Table("", list(header), [list(line) for line in lines], align))
