"""Read a roll-out cache as examples, cut to any p up to the cache's own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tdistill.cache.write import open_cache
from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.mdp.candidates import check_top_p, nucleus_mask, rule_mask
from tdistill.recipe.schema import CandidateRule
from tdistill.runtime.errors import CacheError, ConfigError

EXPERT_ORIGINS = frozenset({"teacher", "human"})


class RolloutDataset(Dataset):
    """Return one response for each index; the collator builds the batches.

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

    def prompt_id(self, index: int) -> str:
        """Return the id of the prompt that an example answers."""
        return self._table["prompt_id"][index].as_py()

    def text(self, index: int) -> str:
        """Return the decoded response of an example."""
        return self._table["text"][index].as_py()

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {name: self._table[name][index] for name in self._table.column_names}
        example = {
            "row": index,
            "prompt_id": row["prompt_id"].as_py(),
            "input_ids": _array(row["prompt_ids"], np.int64),
            "response_ids": _array(row["response_ids"], np.int64),
            "finished": row["finished"].as_py(),
            "expert": row["origin"].as_py() in EXPERT_ORIGINS,
            "teacher_taken_logp": _array(row["token_logp"], np.float32),
            "behaviour_logp": _array(row["behaviour_logp"], np.float32) if row["behaviour_logp"].is_valid else None,
        }
        if self.teacher_top_p < 1.0:
            counts = _array(row["candidate_count"], np.int64)
            ids, logp = _array(row["candidate_ids"], np.int64), _array(row["candidate_logp"], np.float64)
            kept = _array(row["kept_mass"], np.float64)
            example["candidate_ids"], example["candidate_logp"], example["legal"] = self._cut(counts, ids, logp, kept)
        return example

    def _cut(self, counts: np.ndarray, ids: np.ndarray, logp: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ragged candidates as [T, K] arrays, of the mass ``kept`` [T] before they are cut to this data set's p and rule."""
        legal = np.arange(counts.max()) < counts[:, None]
        padded_ids, padded_logp = np.zeros(legal.shape, np.int64), np.full(legal.shape, -np.inf, np.float64)
        padded_ids[legal], padded_logp[legal] = ids, logp
        padded_logp = with_mass(padded_logp, kept).astype(np.float32)
        if self.teacher_top_p < self.manifest.teacher_top_p:
            legal &= nucleus_mask(torch.from_numpy(padded_logp), self.teacher_top_p).numpy()
        if self.rule is not None:
            legal &= rule_mask(self.rule, torch.from_numpy(padded_logp)).numpy()
        width = int(legal.sum(-1).max())
        padded_ids, padded_logp, legal = padded_ids[:, :width], padded_logp[:, :width], legal[:, :width]
        padded_ids[~legal], padded_logp[~legal] = 0, -np.inf
        return padded_ids, padded_logp, legal


def with_mass(logp: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Shift each row of log-probs so that its probabilities sum to ``mass``.

    The cache holds log-probs in float16, whose rounding (1e-4 of mass and more) would drown the mass outside A_p, and what A_p
    keeps of the mass in float32. One shift for all candidates of a state is at most the largest of their rounding errors. After it they
    and the tail are one distribution again, so that no divergence can be below 0.

    Args:
        logp: [T, K], −inf where there is no candidate.
        mass: [T], of the candidates of each row, in (0, 1].

    Raises:
        CacheError: a shift beyond what float16 can have rounded away: the two are not of the same token.
    """
    shift = np.log(np.clip(mass, np.finfo(np.float32).tiny, 1.0)) - np.log(np.exp(logp).sum(-1))
    allowed = np.spacing(np.abs(logp).max(-1, where=np.isfinite(logp), initial=1.0).astype(np.float16)).astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(shift) <= allowed))
    if len(wrong):
        raise CacheError(
            f"The cache says that the candidates of token {wrong[0]} of a response have the mass {mass[wrong[0]]:.6g}, but their "
            f"log-probs sum to {np.exp(logp[wrong[0]]).sum():.6g}: it is damaged or was written by something else. Roll out again."
        )
    return logp + shift[:, None]


def _array(scalar: Any, dtype: Any) -> np.ndarray:
    return scalar.values.to_numpy(zero_copy_only=False).astype(dtype)
