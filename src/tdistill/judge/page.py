"""Report what a judge will cost and what it said: the summary's JSON and its table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from tdistill.judge.score import Summary
from tdistill.pages.tables import MISSING, Cell, Table, format_estimate, format_number, transposed
from tdistill.statistics.estimate import Estimate

BYTES_PER_TOKEN = 4  # of UTF-8: a rule of thumb for English, and not far off elsewhere
MILLION = 1_000_000
PERCENT = 100.0
RESULT = "win_rate_of_a"  # the key by which a summary is known


@dataclass(frozen=True)
class Cost:
    """Hold tokens, and money if prices are known (in the currency of the prices)."""

    input_tokens: int
    output_tokens: int
    money: float | None
    uncounted: int = 0  # replies of which the server gave no count: the sums lack them

    @classmethod
    def of(cls, input_tokens: int, output_tokens: int, prices: tuple[float | None, float | None], uncounted: int = 0) -> Self:
        """Multiply tokens by prices per million."""
        price_input, price_output = prices
        known = price_input is not None and price_output is not None
        money = (input_tokens * (price_input or 0.0) + output_tokens * (price_output or 0.0)) / MILLION if known else None
        return cls(input_tokens, output_tokens, money, uncounted)

    @classmethod
    def estimated(cls, contents: Sequence[str], max_tokens: int, price_input: float | None, price_output: float | None) -> Self:
        """Estimate before asking: the input by its bytes, the output at its limit."""
        input_tokens = sum(math.ceil(len(c.encode()) / BYTES_PER_TOKEN) for c in contents)
        return cls.of(input_tokens, max_tokens * len(contents), (price_input, price_output))

    @classmethod
    def reported(cls, rows: Iterable[Mapping[str, Any]], price_input: float | None, price_output: float | None) -> Self:
        """Add up what the server counted, and count the replies that it did not."""
        counts = [(row.get("prompt_tokens"), row.get("completion_tokens")) for row in rows]
        input_tokens, output_tokens = (sum(pair[i] or 0 for pair in counts) for i in (0, 1))
        return cls.of(input_tokens, output_tokens, (price_input, price_output), sum(None in pair for pair in counts))

    def lines(self) -> list[str]:
        """Format the estimate for the user, who must agree to it."""
        tokens = (
            f"tokens    about {self.input_tokens:,} in (estimated at {BYTES_PER_TOKEN} bytes a token), "
            f"at most {self.output_tokens:,} out (the limit of each reply)"
        )
        money = "cost      unknown: no prices given" if self.money is None else f"cost      at most about {money_text(self.money)}"
        return [tokens, money]


def money_text(money: float) -> str:
    """Format an amount of money in the unit of the prices."""
    return f"{format_number(money)} (in the currency of the prices)"


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
