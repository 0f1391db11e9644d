"""Write a judge's summary: its JSON and its table."""

import math
from dataclasses import asdict
from typing import Any

from tdistill.judge.cost import Cost, money_text
from tdistill.judge.score import Summary
from tdistill.pages.tables import MISSING, Cell, Table, format_estimate, format_number, transposed
from tdistill.statistics.estimate import Estimate

PERCENT = 100.0
RESULT = "win_rate_of_a"  # the key by which a summary is known


def result_json(summary: Summary, cost: Cost) -> dict[str, Any]:
    """Return the numbers of a summary as JSON values; None for a missing number."""
    rate = summary.win_rate
    return {
        RESULT: {"mean": finite(rate.mean), "stderr": finite(rate.stderr), "prompts": rate.n, "interval_95": summary.interval},
        "pairs": {
            "counted": summary.pairs,
            "wins": summary.wins,
            "ties": summary.ties,
            "losses": summary.losses,
            "left_out": summary.pairs_left_out,
        },
        "position": {
            "inconsistent_pairs": finite(summary.inconsistent_share),
            "same_position_pairs": finite(summary.same_position_share),
            "first_position_wins": finite(summary.first_position_share),
        },
        "replies": {"without_verdict": summary.failures, "unanswered": summary.unanswered},
        "cost": asdict(cost),
    }


def finite(value: float) -> float | None:
    """Return the value, or None if it is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None


def summary_table(title: str, model: str, summary: Summary, cost: Cost) -> Table:
    """Build a table of one comparison, with one number on each line."""
    rate = Estimate(PERCENT * summary.win_rate.mean, PERCENT * summary.win_rate.stderr, summary.win_rate.n)
    values = {
        "": title,
        "win rate": f"{format_estimate(rate)} %",
        "95 % interval": " to ".join(map(_percent, summary.interval)) if summary.interval else MISSING,
        "wins / ties / losses": f"{summary.wins} / {summary.ties} / {summary.losses}",
        "pairs (prompts)": f"{summary.pairs} ({summary.win_rate.n})",
        "pairs left out": str(summary.pairs_left_out),
        "replies without a verdict": ", ".join(f"{n} {reason}" for reason, n in summary.failures.items()) or "0",
        "requests without a reply": str(summary.unanswered),
        "pairs whose orders disagree": _percent(summary.inconsistent_share),
        "… by the same place chosen twice": _percent(summary.same_position_share),
        "decisions for the first place": _percent(summary.first_position_share),
        "tokens in / out": f"{cost.input_tokens:,} / {cost.output_tokens:,}"
        + (f" (without {cost.uncounted} replies that the server did not count)" if cost.uncounted else ""),
        "cost": MISSING if cost.money is None else money_text(cost.money),
    }
    caption = (
        f"Judge: {model}. Both orders of a pair are averaged, a tie counts ½; ± is one standard error over prompts, the interval a "
        "bootstrap over prompts. Without position bias the first place gets half of the decisions."
    )
    return transposed(Table(caption, list(values), [[Cell(v) for v in values.values()]], ["right"] * len(values)))


def _percent(part: float) -> str:
    return f"{format_number(PERCENT * part, 1)} %" if math.isfinite(part) else MISSING
