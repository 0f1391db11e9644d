"""Tabulate and draw how much a perfect critic gains at single states: the rows of `turns.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from doc_tables import estimate, number, table
from gain_estimates import Shrinkage, bounds, half_gain, jackknifed_gain, policy_gain
from matplotlib.axes import Axes

from tdistill.pages.lines import COLOURS
from tdistill.pages.svg import INK, Line, Panel, Plot, set_scale

PAYS = 0.3  # nats: a state of a larger gain could pay for a turn
LEVELS = (0.03, 0.05, 0.1, 0.2, PAYS, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
GAMMA, NEAR = 0.9, 0.5
THIRDS = {"teacher_entropy": ("by the teacher's entropy", "-"), "position": ("by position", "--")}
RESAMPLES = 200

Rows = Sequence[dict[str, Any]]


def state_returns(row: dict[str, Any], gamma: float, centred: bool) -> np.ndarray:
    """Return minus the divergence that followed every token [K, S]; ``centred`` leaves out the student's mean per token."""
    total, length = np.array(row["divergence"][f"{gamma:g}"]), np.array(row["length"])
    tokens = length if gamma == 1 else (1 - gamma**length) / (1 - gamma)
    return centred * row["mean_kl"] * tokens - total


@dataclass(frozen=True)
class Group:
    """Hold the mean of something over states, with its standard error by a bootstrap over prompts."""

    mean: float
    stderr: float

    def text(self, digits: int, percent: bool = False) -> str:
        """Return ``mean ± standard error``."""
        scale, sign = (100, " %") if percent else (1, "")
        return estimate(scale * self.mean, scale * self.stderr, digits) + sign


class Gains:
    """Hold the gains of the states of one student, for one discount and kind of return.

    Args:
        rows: of one student.
        gamma: γ.
        centred: whether the student's mean per token is left out.
    """

    def __init__(self, rows: Rows, gamma: float = GAMMA, centred: bool = True):
        self.rows = rows
        self.states = [(state_returns(row, gamma, centred), np.array(row["probs"]) / sum(row["probs"])) for row in rows]
        self.gain = np.array([jackknifed_gain(*state) for state in self.states])
        students = [np.array(row["student_probs"]) / sum(row["student_probs"]) for row in rows]
        self.left = self.gain - [policy_gain(policy, *state) for policy, state in zip(students, self.states, strict=True)]
        self.half = np.array([half_gain(*state)[0] for state in self.states])
        self.noise = np.array([half_gain(*state)[1] for state in self.states])
        _, self._prompts = np.unique([row["prompt_id"] for row in rows], return_inverse=True)

    @cached_property
    def shrinkage(self) -> Shrinkage:
        """Return the empirical Bayes estimate over all states."""
        return Shrinkage(self.states, LEVELS)

    @cached_property
    def _counts(self) -> np.ndarray:
        """Return how often every state counts in every resample of the prompts [resamples, N]."""
        number = self._prompts.max() + 1
        drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
        return drawn[:, self._prompts]

    def mean(self, values: np.ndarray, chosen: np.ndarray | None = None) -> Group:
        """Return the mean of a value of the states over those that are chosen."""
        counts = self._counts if chosen is None else self._counts * chosen
        counts = counts[counts.sum(1) > 0]
        here = np.ones(len(values), bool) if chosen is None else chosen
        return Group(float(values[here].mean()), float((counts @ values / counts.sum(1)).std(ddof=1)))

    @cached_property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the shares above each level for every state [N, L], and the same for every resample [resamples, N, L]."""
        return self.shrinkage.state_shares(), np.array([self.shrinkage.state_shares(counts) for counts in self._counts])

    def share(self, level: float, chosen: np.ndarray | None = None) -> Group:
        """Return the share of the chosen states whose gain exceeds a level."""
        place, here = LEVELS.index(level), np.ones(len(self.rows), bool) if chosen is None else chosen
        found, resampled = (shares[..., place] for shares in self._shares)
        counts = self._counts * here
        full = counts.sum(1) > 0
        means = (counts[full] * resampled[full]).sum(1) / counts[full].sum(1)
        return Group(float(found[here].mean()), float(means.std(ddof=1)))

    def span(self) -> tuple[float, float]:
        """Return what lies below and above the mean gain in expectation."""
        low, high = np.mean([bounds(*state) for state in self.states], axis=0)
        return float(low), float(high)


def by_student(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Group the rows by student, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["system"].rpartition("-")[0] or row["system"], []).append(row)
    return found


def turns_table(pairs: Mapping[str, Rows]) -> str:
    """Return a table of the gain of a perfect critic by pair and student, and how far the student's own choice is from it."""
    lines = []
    for pair, rows in pairs.items():
        for student, own in by_student(rows).items():
            near, gains = Gains(own, NEAR), Gains(own)
            cells = [near.mean(near.gain).text(2), gains.mean(gains.gain).text(2), gains.share(PAYS).text(0, percent=True)]
            lines.append([f"{pair}, `{student}`", str(len(own)), *cells, gains.mean(gains.left).text(2)])
    head = ["pair, student", "states", f"gain, γ = {NEAR:g}", f"gain, γ = {GAMMA:g}", f"gain above {PAYS:g}", "left by the student"]
    return table(head, lines)


def kinds_table(rows: Rows) -> str:
    """Return a table of the gain by position, entropy, kind of token and kind of prompt, over all students of a pair."""
    gains, lines = Gains(rows), []
    for name, chosen in groups(rows).items():
        spread = gains.mean(2 * gains.half, chosen)
        shown = [
            number(max(spread.mean, 0.0) ** 0.5, 2),
            gains.mean(gains.gain, chosen).text(2),
            gains.share(PAYS, chosen).text(0, percent=True),
        ]
        lines.append([name, str(int(chosen.sum())), *shown])
    return table(["states", "number", "between tokens, sd", f"gain, γ = {GAMMA:g}", f"gain above {PAYS:g}"], lines)


def groups(rows: Rows) -> dict[str, np.ndarray]:
    """Return name → which states: thirds of position and entropies, and kinds with at least five states."""
    found = {"all": np.ones(len(rows), bool)}
    for title, key in (("position", "position"), ("teacher's entropy", "teacher_entropy"), ("student's entropy", "student_entropy")):
        found |= {name: chosen for name, chosen in thirds(title, np.array([row[key] for row in rows])).items() if chosen.any()}
    for key in ("token_kind", "prompt_kind"):
        values = np.array([row[key] for row in rows])
        found |= {str(kind): values == kind for kind in dict.fromkeys(sorted(values)) if (values == kind).sum() >= 5}
    return found


def thirds(title: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the thirds of the states by a value, each under a name that gives its bounds. Where many values are equal, one may be empty."""
    low, high = np.quantile(values, (1 / 3, 2 / 3))
    show = (lambda x: f"{x:.0f}") if values.dtype.kind == "i" else (lambda x: f"{x:.2g}")
    parts = {f"≤ {show(low)}": values <= low, f"to {show(high)}": (values > low) & (values <= high), f"> {show(high)}": values > high}
    return {f"{title} {name}".strip(): chosen for name, chosen in parts.items()}


def turns_plot(pairs: Mapping[str, Rows]) -> Plot:
    """Plot the share of states above a gain for every pair, and for each one the mean gain by position and by the teacher's entropy."""
    found = {name: Gains(rows) for name, rows in pairs.items()}
    colours = dict(zip(found, COLOURS, strict=False))
    panels = [_tail_panel(found, colours), *(_thirds_panel(name, gains, colours[name]) for name, gains in found.items())]
    caption = f"What a perfect critic gains at a state of the student's own text, in nats, γ = {GAMMA:g}; bars are ± 2 standard errors."
    legend = [Line(name, colour, "-") for name, colour in colours.items()] + [Line(name, INK, dash) for name, dash in THIRDS.values()]
    return Plot("turns", caption, panels, columns=2, size=(420, 260), legend=legend)


def _tail_panel(found: Mapping[str, Gains], colours: Mapping[str, str]) -> Panel:
    curves = {name: [gains.share(level) for level in LEVELS] for name, gains in found.items()}

    def draw(ax: Axes) -> None:
        for name, curve in curves.items():
            means, errors = [100 * share.mean for share in curve], [200 * share.stderr for share in curve]
            ax.errorbar(LEVELS, means, errors, fmt="o-", color=colours[name], markersize=4, capsize=2, linewidth=1.6)
        ax.set_title("states with a larger gain, %")
        ax.set_xlabel("gain, nats, log scale")
        ax.set_ylim(bottom=0)
        set_scale(ax, "x", log=True)
        set_scale(ax, "y")

    labels = {name: [f"{level:g}" for level in LEVELS] for name in curves}
    return Panel("Share of states above a gain. " + _told(curves, labels, "%"), draw)


def _thirds_panel(name: str, gains: Gains, colour: str) -> Panel:
    parts = {title: thirds("", np.array([row[key] for row in gains.rows])) for key, (title, _) in THIRDS.items()}
    curves = {title: {i: gains.mean(gains.gain, c) for i, c in enumerate(found.values()) if c.any()} for title, found in parts.items()}
    dashes = dict(THIRDS.values())

    def draw(ax: Axes) -> None:
        for title, curve in curves.items():
            means, errors = [g.mean for g in curve.values()], [2 * g.stderr for g in curve.values()]
            ax.errorbar(list(curve), means, errors, fmt=f"o{dashes[title]}", color=colour, markersize=4, capsize=2, linewidth=1.6)
        ax.set_xticks(range(3), ["low", "middle", "high"])
        ax.set_title(f"{name}: mean gain")
        ax.set_xlabel("third of the states")
        set_scale(ax, "y")

    labels = {title: [list(parts[title])[i] for i in curve] for title, curve in curves.items()}
    return Panel(f"Mean gain, {name}. " + _told({title: list(curve.values()) for title, curve in curves.items()}, labels, ""), draw)


def _told(curves: Mapping[str, Sequence[Group]], labels: Mapping[str, Sequence[str]], unit: str) -> str:
    def values(name: str) -> str:
        shown = [f"{100 * g.mean:.1f} %" if unit == "%" else f"{g.mean:.2f}" for g in curves[name]]
        return ", ".join(f"{label} {value}" for label, value in zip(labels[name], shown, strict=True))

    return "; ".join(f"{name}: {values(name)}" for name in curves) + "."
