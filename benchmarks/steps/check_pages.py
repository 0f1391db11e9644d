"""Tabulate the rows of `check.py`: Worlds 1 and 2, whose answers a checker judged. Seeds and problems are both random samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from doc_tables import MISSING, estimate, p_text, table
from ring_pages import CLONING, OWN_CLONING, Rows

from tdistill.statistics.pooling import compared, pooled

GREEDY = "right_greedy"
# metric → title and digits
COLUMNS = {
    GREEDY: ("greedy accuracy ↑", 2),
    "right_sampled": ("accuracy at T = 1 ↑", 2),
    "reverse_kl_text": ("KL of a text ↓", 1),
    "easy_share_sampled": ("share of the easy way", 2),
}
COPIES = (*CLONING, *OWN_CLONING)


def trained(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Return method → rows of its students, without those that diverged."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["seed"] is not None and not row.get("diverged"):
            found.setdefault(row["method"], []).append(row)
    return found


def by_seed(rows: Rows, metric: str) -> dict[Any, Mapping[str, float]]:
    """Return seed → problem → score. A problem without a score is left out."""
    return {row["seed"]: row["scores"].get(metric, {}) for row in rows}


def _mean(rows: Rows, metric: str, digits: int) -> str:
    found = pooled(by_seed(rows, metric))
    return estimate(found.mean, found.stderr, digits) if found.n else MISSING


def methods_table(rows: Rows, chosen: Sequence[str] | None = None) -> str:
    """Return a table of the methods, the most right greedy answers first."""
    found = trained(rows)
    ordered = sorted(found, key=lambda name: -pooled(by_seed(found[name], GREEDY)).mean)
    lines = []
    for name in ordered:
        if chosen is None or name in chosen:
            own = found[name]
            seconds = sum(row["training_seconds"] for row in own) / len(own)
            lines.append([f"`{name}` ({len(own)})", *(_mean(own, metric, digits) for metric, (_, digits) in COLUMNS.items()), f"{seconds:.0f}"])
    return table(["method (seeds)", *(title for title, _ in COLUMNS.values()), "seconds"], lines)


def differences_table(rows: Rows, ahead: Sequence[str], metric: str = GREEDY) -> str:
    """Return a table of differences in accuracy: against the best cloning loss on the teacher's text, on own text, and rejection sampling.

    A method without rows has no column.
    """
    found = trained(rows)
    groups = [[name for name in names if name in found] for names in (CLONING, OWN_CLONING, ("rejection",))]
    others = [max(names, key=lambda name: pooled(by_seed(found[name], metric)).mean) for names in groups if names]
    lines = []
    for name in (n for n in ahead if n in found):
        cells = []
        for other in others:
            difference = compared(by_seed(found[name], metric), by_seed(found[other], metric))
            assert difference is not None
            size = estimate(difference.difference.mean, difference.difference.stderr, 2, signed=True)
            cells.append(f"{size} ({p_text(difference.p_value)})")
        lines.append([f"`{name}`", *cells])
    return table(["method", *(f"against `{other}` (p)" for other in others)], lines)


def knob_table(settings: Mapping[str, Rows], metric: str = GREEDY) -> str:
    """Return a table with a line for each setting and a column for each method that more than one setting has."""
    found = {title: trained(rows) for title, rows in settings.items()}
    shared = [name for name in KNOB_METHODS if sum(name in own for own in found.values()) > 1]
    lines = []
    for title, own in found.items():
        lines.append([title, *(_mean(own[name], metric, 2) if name in own else MISSING for name in shared)])
    return table(["setting", *(f"`{name}`" for name in shared)], lines)


KNOB_METHODS = ("jsd", "reverse_kl_own", "rejection", "actor_critic", "actor_critic_own")
AHEAD = ("actor_critic", "actor_critic_own", "mean_actor_critic", "mean_actor_critic_own", "path_consistency_own", "ls_iq")


READ_FIRST = ("actor_critic_own", "actor_critic", "rejection", "minillm", "jsd", "reverse_kl_own")
FIRST_OF_LISTS = ("actor_critic_own", "actor_critic", "rejection", "sft_long", "jsd", "reverse_kl_own")


def tables(name: str, read_rows: Callable[[], Rows], first: Sequence[str] = READ_FIRST) -> dict[str, Callable[[], str]]:
    """Return name → table of a world for the pages of the documentation. ``first`` are the methods of the short table."""
    return {
        f"steps-{name}": lambda: methods_table(read_rows(), first),
        f"steps-{name}-all": lambda: methods_table(read_rows()),
        f"steps-{name}-greedy": lambda: differences_table(read_rows(), AHEAD),
        f"steps-{name}-sampled": lambda: differences_table(read_rows(), AHEAD, "right_sampled"),
    }
