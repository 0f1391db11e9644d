"""Pad examples into one batch of tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdistill.mdp.candidates import Ragged, pad_candidates
from tdistill.models.layout import pad_pairs

IGNORED_LABEL = -100
# Keys of candidates that are not padded yet.
RAGGED = frozenset({"ragged_ids", "ragged_logp", "candidate_counts"})


class DistillCollator:
    """Pad examples of a ``RolloutDataset`` along time and candidates.

    Tensors of a batch, B responses, T steps, K candidates (B rows, L = P + T − 1 input columns; laid out as ``models.layout`` says):
    ``input_ids``, ``attention_mask`` [B, L] · ``taken_ids`` [B, T] · ``labels`` [B, T] the token where the step counts, else
    −100: already shifted, so that the Trainer's own count of labels is the global count of valid steps · ``candidate_ids``,
    ``logp``, ``legal`` [B, T, K], the teacher's ``Candidates`` (absent when the teacher is online) · ``terminal``, ``teacher_taken_logp``,
    ``behaviour_logp`` (NaN where nobody sampled) [B, T] · ``expert`` [B] ·
    ``window_ids`` [B, W] of a corpus, where the data set has one · ``row`` [B] the examples' indices, to name a batch in errors.

    Args:
        padded: pad the candidates. With False the N real candidates of a batch are ``ragged_ids`` and ``ragged_logp`` [N], and
            ``candidate_counts`` [B, T]: few bytes to move, and ``with_padding`` pads them on the device.
    """

    def __init__(self, padded: bool = True):
        self.padded = padded

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return one batch of the examples."""
        responses = [e["response_ids"] for e in examples]
        input_ids, attention, taken, mask = pad_pairs([e["input_ids"] for e in examples], responses)
        steps = taken.shape[1]
        terminal = torch.zeros_like(mask)
        for i, example in enumerate(examples):
            terminal[i, len(responses[i]) - 1] = bool(example["finished"])
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention,
            "taken_ids": taken,
            "labels": taken.masked_fill(~mask, IGNORED_LABEL),
            "terminal": terminal,
            "teacher_taken_logp": _pad([e["teacher_taken_logp"] for e in examples], (steps,), 0.0),
            "behaviour_logp": _pad([e["behaviour_logp"] for e in examples], (steps,), np.nan),
            "expert": torch.tensor([e["expert"] for e in examples]),
            "row": torch.tensor([e["row"] for e in examples]),
        }
        if "window_ids" in examples[0]:
            batch["window_ids"] = torch.from_numpy(np.stack([e["window_ids"] for e in examples]))
        if "candidates" in examples[0]:
            batch |= _ragged([e["candidates"] for e in examples], steps)
        return with_padding(batch) if self.padded else batch


def with_padding(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch with its candidates padded, on the device where they are. A batch without ragged candidates is returned as it is."""
    if "ragged_ids" not in batch:
        return batch
    ids, logp, legal = pad_candidates(batch["ragged_ids"], batch["ragged_logp"], batch["candidate_counts"])
    rest = {k: v for k, v in batch.items() if k not in RAGGED}
    return {**rest, "candidate_ids": ids.long(), "logp": logp, "legal": legal}


def _ragged(found: list[Ragged], steps: int) -> dict[str, Tensor]:
    """Return the candidates of a batch in sequence, and how many every step has."""
    return {
        "ragged_ids": torch.from_numpy(np.concatenate([r.ids for r in found], dtype=np.int32, casting="same_kind")),
        "ragged_logp": torch.from_numpy(np.concatenate([r.logp for r in found])),
        "candidate_counts": _pad([r.counts for r in found], (steps,), 0),
    }


def _pad(arrays: list[np.ndarray | None], shape: tuple[int, ...], fill: Any) -> Tensor:
    dtype = next((a.dtype for a in arrays if a is not None), np.dtype(np.float32))
    out = np.full((len(arrays), *shape), fill, dtype)
    for i, array in enumerate(arrays):
        if array is not None:
            out[i][tuple(slice(0, n) for n in array.shape)] = array
    return torch.from_numpy(out)
