"""Check the values of a roll-out cache. It may come from anywhere, and training must read only numbers that a teacher can have given.

float16 rounds log-probs by a relative 2⁻¹¹, so masses and log-probs are compared within what that rounding allows, and
``TOLERANCE`` more for sums in float32.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tdistill.cache.schema import ORIGINS
from tdistill.runtime.errors import CacheError

TOLERANCE = 1e-3
FLOAT16_RELATIVE, FLOAT16_LEAST = 2.0**-11, 2.0**-25  # half the spacing: relative to a value, and below the normal numbers
LARGEST_ID = 2**31 - 1  # ids are signed where models read them
PER_TOKEN = ("candidate_count", "kept_mass", "token_logp", "behaviour_logp")
ADVICE = "The file is damaged, or another program wrote it. Delete it and manifest.json, and run `tdistill rollout` again."


@dataclass(frozen=True)
class ListColumn:
    """Hold one list for each row: all values in sequence, and how many each row has."""

    values: np.ndarray
    lengths: np.ndarray  # [rows]; 0 where the row is null
    present: np.ndarray  # [rows] bool

    @classmethod
    def of(cls, column: Any) -> "ListColumn":
        """Split a list column of a table into its values and its lengths."""
        array = column.combine_chunks()
        lengths = np.nan_to_num(array.value_lengths().to_numpy(zero_copy_only=False)).astype(np.int64)
        return cls(array.flatten().to_numpy(zero_copy_only=False), lengths, array.is_valid().to_numpy(zero_copy_only=False))

    def row_of(self, index: int) -> tuple[int, int]:
        """Return the row of a value, and its place in that row."""
        ends = self.lengths.cumsum()
        row = int(np.searchsorted(ends, index, side="right"))
        return row, int(index - (ends[row] - self.lengths[row]))


class ShardCheck:
    """Check one shard, in a fixed order, since later checks rely on earlier ones.

    Args:
        table: the shard's rows, of the cache's schema.
        settings: the cache's settings, already checked.
        path: the shard's path, for messages.
        vocab_size: ids must lie below it, where it is known.

    Raises:
        CacheError: a row can't be what a teacher gave; shard, row and column are named.
    """

    def __init__(self, table: pa.Table, settings: dict[str, Any], path: Path, vocab_size: int | None = None):
        self.table, self.settings, self.path = table, settings, path
        self.vocab_size = min(vocab_size or LARGEST_ID + 1, LARGEST_ID + 1)
        self._check_nulls()
        self.lists = {f.name: ListColumn.of(table[f.name]) for f in table.schema if pa.types.is_list(f.type)}
        self.steps = self.lists["response_ids"]
        self._check_rows()
        self._check_lengths()
        self._check_ids()
        self._check_log_probs()
        counts = self.lists["candidate_count"].values.astype(np.int64)
        self.starts = counts.cumsum() - counts  # of every step among the candidates
        self.step = np.repeat(np.arange(len(counts)), counts)  # of every candidate
        self._check_candidates()
        self._check_masses(counts)
        self._check_tokens_taken()
        self._check_ends()

    def _refuse(self, row: int, words: str) -> None:
        raise CacheError(f"{self.path}, row {row}: {words}. {ADVICE}")

    def _refuse_row(self, wrong: np.ndarray, words: str) -> None:
        if wrong.any():
            self._refuse(int(wrong.argmax()), words)

    def _refuse_value(self, column: str, wrong: np.ndarray, words: str) -> None:
        """Refuse the first value of a list column that is wrong."""
        if wrong.any():
            row, place = self.lists[column].row_of(int(wrong.argmax()))
            self._refuse(row, f"{column}[{place}] is {self.lists[column].values[wrong.argmax()]}, {words}")

    def _refuse_step(self, wrong: np.ndarray, words: str) -> None:
        if wrong.any():
            row, place = self.steps.row_of(int(wrong.argmax()))
            self._refuse(row, f"token {place}: {words}")

    def _check_nulls(self) -> None:
        if not len(self.table):
            raise CacheError(f"{self.path} holds no responses. {ADVICE}")
        for field in self.table.schema:
            column = self.table[field.name].combine_chunks()
            nulls = column.is_null().to_numpy(zero_copy_only=False)
            self._refuse_row(nulls & (field.name != "behaviour_logp"), f"{field.name} is null")
            if pa.types.is_list(field.type) and column.flatten().null_count:
                raise CacheError(f"{self.path}: a list in {field.name} holds null. {ADVICE}")

    def _check_rows(self) -> None:
        origins, allowed = self.table["origin"].to_pylist(), (self.settings["origin"],) if "origin" in self.settings else ORIGINS
        self._refuse_row(np.array([o not in allowed for o in origins]), f"origin must be {' or '.join(allowed)}")
        known, seen = set(self.settings["prompts"]), self.lists["prompt_ids"]
        prompts = self.table["prompt_id"].to_pylist()
        self._refuse_row(np.array([p not in known for p in prompts]), "prompt_id is none of the prompts that the cache was made from")
        self._refuse_row(self.table["sample_index"].to_numpy() < 0, "sample_index is negative")
        self._refuse_row(seen.lengths < 1, "prompt_ids is empty")
        first: dict[str, bytes] = {}
        for row, (prompt, ids) in enumerate(zip(prompts, np.split(seen.values, seen.lengths.cumsum()[:-1]), strict=True)):
            if first.setdefault(prompt, ids.tobytes()) != ids.tobytes():
                self._refuse(row, "prompt_ids differ from those of the same prompt in an earlier row")

    def _check_lengths(self) -> None:
        longest = self.settings["max_completion_length"]
        self._refuse_row(self.steps.lengths < 1, "response_ids is empty")
        self._refuse_row(self.steps.lengths > longest, f"response_ids is longer than max_completion_length={longest}")
        for name in PER_TOKEN:
            wrong = self.lists[name].present & (self.lists[name].lengths != self.steps.lengths)
            self._refuse_row(wrong, f"{name} has not one entry for every token of the response")
        counts, cap = self.lists["candidate_count"], self.settings["max_candidates"] or LARGEST_ID
        self._refuse_value("candidate_count", counts.values < 1, "and every token has at least one candidate")
        self._refuse_value("candidate_count", counts.values > cap, f"above max_candidates={cap}")
        sums = np.add.reduceat(counts.values.astype(np.int64), counts.lengths.cumsum() - counts.lengths)
        for name in ("candidate_ids", "candidate_logp"):
            self._refuse_row(self.lists[name].lengths != sums, f"{name} has not as many entries as candidate_count says")

    def _check_ids(self) -> None:
        for name in ("prompt_ids", "response_ids", "candidate_ids"):
            self._refuse_value(name, self.lists[name].values >= self.vocab_size, f"and token ids lie below {self.vocab_size}")

    def _check_log_probs(self) -> None:
        # The log of the mass that was cut off is taken in float32: it may come out a little above 0.
        for name, most in (("candidate_logp", 0.0), ("token_logp", 1e-5), ("behaviour_logp", TOLERANCE)):
            values = self.lists[name].values
            self._refuse_value(name, ~np.isfinite(values) | (values > most), "and a log-probability is finite and at most 0")

    def _check_candidates(self) -> None:
        logp, ids = self.lists["candidate_logp"].values, self.lists["candidate_ids"].values
        rises = np.concatenate([[False], logp[1:] > logp[:-1]])
        rises[self.starts] = False
        self._refuse_value("candidate_logp", rises, "above the one before it: candidates go from the most probable down")
        keys = np.sort(self.step << 32 | ids)
        twice = keys[1:] == keys[:-1]
        if twice.any():
            key = int(keys[1:][twice.argmax()])
            row, place = self.steps.row_of(key >> 32)
            self._refuse(row, f"token {place}: candidate {key & LARGEST_ID} stands twice")

    def _check_masses(self, counts: np.ndarray) -> None:
        logp, kept = self.lists["candidate_logp"].values.astype(np.float64), self.lists["kept_mass"].values.astype(np.float64)
        p, cap = self.settings["teacher_top_p"], self.settings["max_candidates"]
        mass, rounding = np.exp(logp), -logp * FLOAT16_RELATIVE + FLOAT16_LEAST
        total, slack = np.add.reduceat(mass, self.starts), np.add.reduceat(mass * np.expm1(rounding), self.starts) + TOLERANCE
        outside = ~np.isfinite(kept) | (kept <= 0.0) | (kept > 1.0 + TOLERANCE)
        self._refuse_value("kept_mass", outside, "and a share of the probability lies in (0, 1]")
        self._refuse_value("kept_mass", np.abs(kept - total) > slack, "not the sum of the candidates' probabilities")
        short = (kept < p - TOLERANCE) & (counts != cap)
        self._refuse_value("kept_mass", short, f"below p={p:g} though the candidates are not capped: some are missing")
        before = total - mass[self.starts + counts - 1]
        self._refuse_step(before > p + slack, f"more candidates than reach p={p:g}")

    def _check_tokens_taken(self) -> None:
        logp, token = self.lists["candidate_logp"].values.astype(np.float64), self.lists["token_logp"].values.astype(np.float64)
        taken = self.lists["candidate_ids"].values == self.steps.values[self.step]
        slack = -logp * FLOAT16_RELATIVE + TOLERANCE
        differs = np.zeros(len(token), bool)
        differs[self.step[taken & (np.abs(logp - token[self.step]) > slack)]] = True
        self._refuse_step(differs, "token_logp is not the log-probability that the same token has among the candidates")
        inside = np.zeros(len(token), bool)
        inside[self.step[taken]] = True
        last = np.concatenate([self.starts[1:], [len(logp)]]) - 1
        self._refuse_step(~inside & (token > logp[last] + slack[last]), "it is more probable than a candidate, and none itself")

    def _check_ends(self) -> None:
        """Check that a response is finished if and only if it ends by an end-of-text token. Only human answers may hold one earlier, or be cut
        where the writer chose.
        """
        eos = np.isin(self.steps.values, self.settings["eos_ids"])
        ends = self.steps.lengths.cumsum() - 1
        finished = self.table["finished"].to_numpy()
        self._refuse_row(finished & ~eos[ends], "finished, but its last token ends no text")
        self._refuse_row(~finished & eos[ends], "not finished, but its last token ends a text")
        sampled = np.array([o != "human" for o in self.table["origin"].to_pylist()])
        cut_short = sampled & ~finished & (self.steps.lengths < self.settings["max_completion_length"])
        self._refuse_row(cut_short, "neither finished nor as long as max_completion_length")
        inner = eos.copy()
        inner[ends] = False
        self._refuse_step(inner & np.repeat(sampled, self.steps.lengths), "an end-of-text token before the end of the response")


def check_completeness(rows: Sequence[tuple[str, int]], settings: dict[str, Any], directory: Path) -> None:
    """Check that all shards together hold every (prompt, sample) that the settings ask for.

    Raises:
        CacheError: a row is missing, or stands twice.
    """
    origin = settings.get("origin")
    if origin == "human" or origin not in ORIGINS:
        return
    samples = settings["num_generations"] if origin == "teacher" else 1
    wanted = {p: n * samples for p, n in Counter(settings["prompts"]).items()}
    have = Counter(p for p, _ in rows)
    for prompt, n in wanted.items():
        if have[prompt] != n:
            raise CacheError(f"{directory} holds {have[prompt]} responses to prompt {prompt}, and {n} were asked for. {ADVICE}")
    if origin == "teacher":
        sample = next((row for row, n in Counter(rows).items() if n > 1 or row[1] >= samples), None)
        if sample is not None:
            raise CacheError(f"{directory} holds sample {sample[1]} of prompt {sample[0]} twice or beyond num_generations={samples}. {ADVICE}")
