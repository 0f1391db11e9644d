"""Draw and tabulate how far students are from the teacher along their own texts: the rows of `exposure.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from doc_tables import MISSING, number, table
from matplotlib.axes import Axes

from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import INK, Line, Panel, Plot, set_scale

BEYOND = 30  # texts of every system that go on after the trained length, for a column of what follows
ENOUGH = 64  # tokens of every system in a block that is drawn


def own_text_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """Return a table of KL to the teacher on every method's own text: in all, against ``baseline``, and by stretch of the text."""
    found, stretches = _exposures(rows), _stretches(rows)
    lines = []
    for name in _by_kl(found):
        own, base = found[name], {r.get("seed"): r for r in found[baseline]}
        paired = [_mean(r, "kl") - _mean(base[r["seed"]], "kl") for r in own if r.get("seed") in base]
        against = MISSING if name == baseline or not paired else _with_error(paired, signed=True)
        parts = [[_mean(r, "kl", part) for r in own] for part in stretches.values()]
        lines.append([f"`{name}`", _with_error([_mean(r, "kl") for r in own]), against, *map(_with_error, parts)])
    return table(["method", "KL(q‖p) on own text", f"less `{baseline}`'s", *stretches], lines)


def excess_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the teacher's NLL of every method's own text, and how much it exceeds that of the teacher's own text."""
    found, stretches = _exposures(rows), _stretches(rows)
    teacher, lines = found["teacher"][0], []
    for name in _by_kl(found):
        gaps = [[_mean(r, "nll", part) - _mean(teacher, "nll", part) for r in found[name]] for part in stretches.values()]
        lines.append([f"`{name}`", str(len(found[name])), _with_error([_mean(r, "nll") for r in found[name]]), *map(_with_error, gaps)])
    return table(["method", "seeds", "teacher NLL", *(f"above the teacher's, {where}" for where in stretches)], lines)


def _by_kl(found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    return sorted(found, key=lambda name: float(np.mean([_mean(r, "kl") for r in found[name]])))


def _stretches(rows: Sequence[dict[str, Any]]) -> dict[str, slice]:
    """Return the stretches of a text by their title; what follows the trained length only if enough texts of every system go on there."""
    trained = rows[0]["trained_length"]
    stretches = {"tokens 1 to 8": slice(8), f"9 to {trained}": slice(8, trained)}
    if min(r["count"][trained] for r in rows) >= BEYOND:
        stretches[f"{trained + 1} to {rows[0]['length']}"] = slice(trained, None)
    return stretches


def _exposures(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group the rows by method, or by system where a system has no training seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.get("method", row["system"]), []).append(row)
    return found


def _mean(row: dict[str, Any], key: str, part: slice = slice(None)) -> float:
    return float(np.sum(row[key][part]) / max(np.sum(row["count"][part]), 1))


def _with_error(values: Sequence[float], signed: bool = False) -> str:
    return number(float(np.mean(values)), 3, signed) + (f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else "")


def exposure_plot(key: str, rows: Sequence[dict[str, Any]], names: Sequence[str], block: int = 8) -> Plot:
    """Plot by position in the text, in blocks of tokens: teacher NLL above that of the teacher's own text, and KL on the student's text."""
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
