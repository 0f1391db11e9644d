"""Read a roll-out cache as examples, cut to any p up to the cache's own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from tdistill.cache.read import open_cache
from tdistill.cache.schema import candidates_of, list_of
from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.mdp.candidates import FIRST_TOPK, TOPK_GROWTH, Candidates, Ragged, check_top_p, nucleus_mask, rule_mask
from tdistill.recipe.schema import CandidateRule
from tdistill.runtime.errors import CacheError, ConfigError

# ``selected``: the student's own answers that the teacher finds likeliest of several, which are demonstrations.
EXPERT_ORIGINS = frozenset({"teacher", "human", "selected"})


class RolloutDataset(Dataset):
    """Read one response for each index; the collator builds the batches. Its candidates come as ``Ragged``, without padding.

    Args:
        directory: a complete cache.
        teacher_top_p: p of the action space; by default the cache's own. 1.0: no candidates (the teacher must be online).
        origins: keep responses of these origins only.
        expect: settings the cache must have, such as the teacher's fingerprint.
        rule: cuts the candidates further.
        vocab_size: token ids must lie below it, where it is known.

    Raises:
        CacheError: no complete cache, a damaged or foreign one, an id beyond the vocabulary, a p above the cache's, no response of
            these origins.
    """

    def __init__(
        self,
        directory: str | Path,
        teacher_top_p: float | None = None,
        origins: tuple[str, ...] = ("teacher",),
        expect: dict[str, Any] | None = None,
        rule: CandidateRule | None = None,
        vocab_size: int | None = None,
    ):
        self.manifest, table = open_cache(Path(directory), expect, vocab_size)
        self.teacher_top_p = self.manifest.teacher_top_p if teacher_top_p is None else teacher_top_p
        check_top_p(self.teacher_top_p)
        self.rule = rule
        if rule is not None and self.teacher_top_p >= 1.0:
            raise ConfigError(f"A candidate rule ({rule.name}) cuts cached candidates: set teacher_top_p below 1, got {self.teacher_top_p}.")
        if self.manifest.teacher_top_p < self.teacher_top_p < 1.0:
            raise CacheError(
                f"teacher_top_p={self.teacher_top_p} is above the {self.manifest.teacher_top_p} that {directory} was made with: "
                "roll out again with the larger p, or use 1.0 with the teacher online."
            )
        keep = [i for i, origin in enumerate(table["origin"].to_pylist()) if origin in origins]
        if not keep:
            raise CacheError(f"{directory} has no response of origin {' or '.join(origins)}.")
        self._table = table.take(keep).combine_chunks()

    def __len__(self) -> int:
        return len(self._table)

    @property
    def has_other(self) -> bool:
        """Tell whether some responses are not the expert's."""
        return not set(self._table["origin"].to_pylist()) <= EXPERT_ORIGINS

    def prompts(self) -> list[TokenizedPrompt]:
        """Return every prompt once, as the model reads it, in the cache's order."""
        ids, tokens = self._table["prompt_id"].to_pylist(), self._table["prompt_ids"]
        first = {prompt_id: i for i, prompt_id in reversed(list(enumerate(ids)))}
        return [TokenizedPrompt(Prompt(p, ()), tuple(tokens[i].as_py())) for p, i in sorted(first.items(), key=lambda item: item[1])]

    def lengths(self) -> list[int]:
        """Return the number of tokens of every example, prompt and response."""
        columns = [self._table[name].combine_chunks().value_lengths().to_numpy() for name in ("prompt_ids", "response_ids")]
        return (columns[0] + columns[1]).tolist()

    def prompt_id(self, index: int) -> str:
        """Return the id of the prompt that an example answers."""
        return self._table["prompt_id"][index].as_py()

    def text(self, index: int) -> str:
        """Return the decoded response of an example."""
        return self._table["text"][index].as_py()

    def __getitem__(self, index: int) -> dict[str, Any]:
        origin, finished = (self._table[name][index].as_py() for name in ("origin", "finished"))
        sampled = self._table["behaviour_logp"][index].is_valid
        example = {
            "row": index,
            "prompt_id": self.prompt_id(index),
            "input_ids": list_of(self._table, "prompt_ids", index, np.int64),
            "response_ids": list_of(self._table, "response_ids", index, np.int64),
            "finished": finished,
            "expert": origin in EXPERT_ORIGINS,
            "teacher_taken_logp": list_of(self._table, "token_logp", index, np.float32),
            "behaviour_logp": list_of(self._table, "behaviour_logp", index, np.float32) if sampled else None,
        }
        if self.teacher_top_p < 1.0:
            example["candidates"] = self._cut(candidates_of(self._table, index))
        return example

    def _cut(self, ragged: Ragged) -> Ragged:
        """Cut candidates to this data set's p and rule."""
        found = replace(ragged, logp=with_mass(ragged).astype(np.float32))
        if self.teacher_top_p >= self.manifest.teacher_top_p and self.rule is None:
            return found
        width = FIRST_TOPK
        while True:
            head = found.first(width)
            kept = self._keep(Candidates.from_ragged(head).logp).sum(-1).numpy()
            # A state is settled once one of its candidates is refused: those behind it are too.
            if not ((kept == width) & (found.counts > width)).any():
                return found.first(kept)
            width *= TOPK_GROWTH

    def _keep(self, logp: Float[Tensor, "T K"]) -> Bool[Tensor, "T K"]:
        keep = logp > -torch.inf
        if self.teacher_top_p < self.manifest.teacher_top_p:
            keep = keep & nucleus_mask(logp, self.teacher_top_p)
        if self.rule is not None:
            keep = keep & rule_mask(self.rule, logp)
        return keep


def with_mass(found: Ragged) -> np.ndarray:
    """Return the log-probs of all candidates, those of each state shifted so that its probabilities sum to ``kept_mass``.

    The cache holds log-probs in float16, whose rounding (1e-4 of mass and more) would drown the mass outside A_p, and what A_p
    keeps of the mass in float32. One shift for all candidates of a state is at most the largest of their rounding errors. After it they
    and the tail are one distribution again, so that no divergence can be below 0.

    Args:
        found: log-probs and masses in float64; the masses in (0, 1].

    Raises:
        CacheError: a shift beyond what float16 can have rounded away: the two are not of the same token.
    """
    sums = found.mass
    shift = np.log(np.clip(found.kept_mass, np.finfo(np.float32).tiny, 1.0)) - np.log(sums)
    largest = np.maximum(np.maximum.reduceat(np.abs(found.logp), np.cumsum(found.counts) - found.counts), 1.0)
    allowed = np.spacing(largest.astype(np.float16)).astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(shift) <= allowed))
    if len(wrong):
        raise CacheError(
            f"The cache says that the candidates of token {wrong[0]} of a response have the mass {found.kept_mass[wrong[0]]:.6g}, but their "
            f"log-probs sum to {sums[wrong[0]]:.6g}: it is damaged or was written by something else. Roll out again."
        )
    return found.logp + np.repeat(shift, found.counts)
