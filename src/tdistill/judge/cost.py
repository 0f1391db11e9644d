"""Compute what a judge costs: an estimate before it is asked, and the count of the server afterwards."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tdistill.pages.tables import format_number
from tdistill.runtime.errors import ConfigError

BYTES_PER_TOKEN = 4  # of UTF-8: a rule of thumb for English, and not far off elsewhere
MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """Hold the prices of a million tokens, in any currency."""

    input: float
    output: float

    @classmethod
    def given(cls, price_input: float | None, price_output: float | None) -> Self | None:
        """Return the prices, or None if none is given.

        Raises:
            ConfigError: one of the two is missing, or one is not finite.
        """
        if price_input is None and price_output is None:
            return None
        if price_input is None or price_output is None:
            raise ConfigError("Give both --price-per-million-input and --price-per-million-output, or neither.")
        for option, value in {"--price-per-million-input": price_input, "--price-per-million-output": price_output}.items():
            if not math.isfinite(value):
                raise ConfigError(f"{option} must be a number, got {value}.")
        return cls(price_input, price_output)

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Return the price of the tokens of both kinds."""
        return (input_tokens * self.input + output_tokens * self.output) / MILLION


@dataclass(frozen=True)
class Cost:
    """Hold the number of tokens, and the money that they cost if the prices are known (in the currency of the prices)."""

    input_tokens: int
    output_tokens: int
    money: float | None
    uncounted: int = 0  # replies of which the server gave no count: the sums lack them

    @classmethod
    def estimated(cls, contents: Sequence[str], max_tokens: int, prices: Prices | None) -> Self:
        """Estimate the cost before the judge is asked: the input by its bytes, the output at its limit."""
        tokens = (sum(math.ceil(len(c.encode()) / BYTES_PER_TOKEN) for c in contents), max_tokens * len(contents))
        return cls(*tokens, prices.of(*tokens) if prices else None)

    @classmethod
    def reported(cls, rows: Iterable[Mapping[str, Any]], prices: Prices | None) -> Self:
        """Add up the tokens that the server counted, and count the replies without a count."""
        counts = [(row.get("prompt_tokens"), row.get("completion_tokens")) for row in rows]
        tokens = (sum(pair[0] or 0 for pair in counts), sum(pair[1] or 0 for pair in counts))
        return cls(*tokens, prices.of(*tokens) if prices else None, sum(None in pair for pair in counts))

    def lines(self) -> list[str]:
        """Return the lines that show the estimate to the user, who must agree to it."""
        tokens = (
            f"tokens    about {self.input_tokens:,} in (estimated at {BYTES_PER_TOKEN} bytes a token), "
            f"at most {self.output_tokens:,} out (the limit of each reply)"
        )
        money = "cost      unknown: no prices given" if self.money is None else f"cost      at most about {money_text(self.money)}"
        return [tokens, money]


def money_text(money: float) -> str:
    """Format an amount of money in the unit of the prices."""
    return f"{format_number(money)} (in the currency of the prices)"
