"""Turn a judge's replies into verdicts and a win rate, and measure the effect of the answers' order."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from tdistill.judge.pairs import ORDERS, Order, Question
from tdistill.judge.protocol import Reply
from tdistill.statistics.estimate import Estimate, estimate

Verdict = Literal["A", "B", "tie"]  # A is the answer shown first
REFUSED, CUT_OFF, EMPTY, CONTRADICTORY, NO_VERDICT = "refused", "cut off", "empty", "contradictory", "no verdict"
WIN, TIE, LOSS = 1.0, 0.5, 0.0
SCORES: dict[tuple[Order, str], float] = {
    ("AB", "A"): WIN,
    ("AB", "B"): LOSS,
    ("BA", "A"): LOSS,
    ("BA", "B"): WIN,
    ("AB", "tie"): TIE,
    ("BA", "tie"): TIE,
}
RESAMPLES, BOOTSTRAP_SEED, COVERAGE = 10_000, 0, 0.95

_DECORATION = re.compile(r"[*_`~#>\[\](){}\"'“”‘’]")
# A statement fills its line, or ends it after a whole sentence; what goes on ("A or B", "A|B|tie", "A is worse") is none.
_STATEMENT = re.compile(
    r"(?:^|(?<=[.!?;:] ))(?:(?:my|the) )?(?:final )?verdict(?: is)? ?[:=–—-]? ?(?:answer )?(a|b|(?:a )?tie)(?= ?[.!]?$| ?[.!] )"
)
_VERDICTS: dict[str, Verdict] = {"a": "A", "b": "B", "tie": "tie"}
VERDICTS = frozenset(_VERDICTS.values())


def parse_verdict(reply: Reply) -> tuple[Verdict | None, str | None]:
    """Return the verdict, or the reason why there is none: the last line must state a verdict, and no other line may state another.

    Markdown, brackets, case and a reasoning model's ``<think>`` part do not matter. A reply that is a bare verdict counts too.
    """
    if reply.refusal or reply.finish_reason == "content_filter":
        return None, REFUSED
    if reply.finish_reason == "length":
        return None, CUT_OFF
    spoken = unicodedata.normalize("NFKC", reply.content).rpartition("</think>")[2].casefold()
    lines = [line for line in (" ".join(_DECORATION.sub(" ", raw).split()) for raw in spoken.splitlines()) if line]
    if not lines:
        return None, EMPTY
    if len(lines) == 1 and lines[0].strip(" .") in _VERDICTS:
        return _VERDICTS[lines[0].strip(" .")], None
    stated = [m for line in lines for m in _STATEMENT.finditer(line)]
    if not stated or stated[-1].string != lines[-1] or lines[-1][stated[-1].end() :].strip(" .!"):
        return None, NO_VERDICT
    values = {m[1].removeprefix("a ") for m in stated}
    return (_VERDICTS[values.pop()], None) if len(values) == 1 else (None, CONTRADICTORY)


@dataclass(frozen=True)
class Summary:
    """Hold the result of two systems' verdicts. A pair's score is the mean of its two orders': 1 if A wins, ½ for a tie, 0 if B wins."""

    win_rate: Estimate  # of A, over prompts
    interval: tuple[float, float] | None
    wins: int  # pairs whose score is above ½
    ties: int
    losses: int
    inconsistent: int  # pairs whose two orders do not say the same
    same_position: int  # of these, pairs where the answer shown first won both times, or lost both times
    first_wins: int  # verdicts, in either order, for the answer shown first
    second_wins: int
    failures: dict[str, int]  # replies without a verdict, by reason
    unanswered: int  # questions without a reply
    pairs_left_out: int  # pairs without two verdicts

    @property
    def pairs(self) -> int:
        """Return the number of pairs that count."""
        return self.wins + self.ties + self.losses

    @property
    def inconsistent_share(self) -> float:
        """Return the share of counted pairs whose two verdicts disagree; NaN if there are none."""
        return _share(self.inconsistent, self.pairs)

    @property
    def same_position_share(self) -> float:
        """Return the share of counted pairs whose two verdicts prefer the same position; NaN if there are none."""
        return _share(self.same_position, self.pairs)

    @property
    def first_position_share(self) -> float:
        """Return the share of verdicts for the answer shown first, among verdicts that are not ties; NaN if there are none."""
        return _share(self.first_wins, self.first_wins + self.second_wins)


def summarise(questions: Sequence[Question], rows: Mapping[str, Mapping[str, Any]]) -> Summary:
    """Summarise the pairs that have a verdict in both orders. ``rows`` maps the keys of questions to verdicts."""
    verdicts: dict[tuple[str, int], dict[Order, str | None]] = {}
    for q in questions:
        verdicts.setdefault((q.prompt_id, q.sample_index), {})[q.order] = rows[q.key]["verdict"] if q.key in rows else None
    scores: dict[tuple[str, int], tuple[float, float]] = {}
    shown: Counter[str] = Counter()
    for pair, by_order in verdicts.items():
        first, second = (by_order[order] for order in ORDERS)
        if first and second:
            scores[pair] = (SCORES["AB", first], SCORES["BA", second])
            shown.update((first, second))
    by_prompt: dict[str, list[float]] = {}
    for (prompt_id, _), both in scores.items():
        by_prompt.setdefault(prompt_id, []).append(fmean(both))
    means = [fmean(values) for values in by_prompt.values()]
    pairs = [fmean(both) for both in scores.values()]
    answered = [rows[q.key] for q in questions if q.key in rows]
    return Summary(
        win_rate=estimate(means),
        interval=bootstrap_interval(means),
        wins=sum(s > TIE for s in pairs),
        ties=sum(s == TIE for s in pairs),
        losses=sum(s < TIE for s in pairs),
        inconsistent=sum(x != y for x, y in scores.values()),
        same_position=sum(abs(x - y) == WIN for x, y in scores.values()),
        first_wins=shown["A"],
        second_wins=shown["B"],
        failures=dict(sorted(Counter(row["failure"] for row in answered if row["failure"]).items())),
        unanswered=len(questions) - len(answered),
        pairs_left_out=len(verdicts) - len(pairs),
    )


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of a mean; None for fewer than two values or if all are equal."""
    x = np.asarray(values, dtype=np.float64)
    if len(set(values)) < 2:
        return None
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = [x[generator.integers(len(x), size=len(x))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
