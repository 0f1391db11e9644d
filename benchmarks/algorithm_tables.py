"""Make the table "Results" of every algorithm's page from the rows of the fast pair and of the real pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from doc_tables import MISSING, table
from pooled_methods import Method, methods, show, show_difference

METRICS = ("teacher_nll", "reverse_kl", "rouge_l", "distinct_2")
HEAD = ["pair: method (seeds)", "teacher NLL ↓", "reverse KL ↓", "ROUGE-L ↑", "distinct-2", "Δ teacher NLL (p)"]
BASELINE = "sft_continued"
# Of the many variants of `actor_critic` that were measured, those that its page shows.
VARIANTS = {
    "actor_critic": ("ac_gamma_09", "ac_dense_gamma_09", "ac_uniform_gamma_09", "ac_own_gamma_09", "ac_jsd_gamma_09", "actor_critic_gamma_0"),
}


def algorithm_table(objective: str, tested: Mapping[str, Sequence[dict[str, Any]]], validated: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Return a table of every method that ran an objective by itself, beside SFT continued on the same pair.

    Args:
        objective: the name in the registry.
        tested: title of a pair → its rows on test prompts.
        validated: the same on validation prompts, for objectives that have no row on test prompts.
    """
    lines = _lines(objective, tested) or _lines(objective, validated)
    return table(HEAD, lines)


def _lines(objective: str, pairs: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[str]]:
    lines = []
    for pair, rows in pairs.items():
        found = methods(rows)
        base = next(m for m in found if m.name.partition("@")[0] == BASELINE)
        own = [m for m in found if _ran(m, objective)]
        if own:
            lines += [_line(pair, method, base) for method in (*own, *([] if base in own else [base]))]
    return lines


def _ran(method: Method, objective: str) -> bool:
    name = method.rows[0]["objective"]
    shown = VARIANTS.get(objective)
    return name.partition("(")[0] == objective and " + " not in name and (shown is None or method.name in shown)


def _line(pair: str, method: Method, base: Method) -> list[str]:
    difference = MISSING if method is base else show_difference(method, base, "teacher_nll")
    name = f"{pair}: `{method.name.partition('@')[0]}` ({len(method.finished)})"
    return [name, *(show(method, m) for m in METRICS), difference]
