"""Define the layout of a batch: the padding, and the shift between tokens and the columns that score them.

Prompts are padded on the left and responses on the right, so that every response starts in the same column:

    [0 0 p p p | r r r r]      The column of the last prompt token scores the first response token, and so on: the last T
    [p p p p p | r r 0 0]      columns of a model fed with all but the last response token score the T response tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


def left_pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids [B, L], padded with 0 on the left, and their attention mask. Masks come from lengths, never from values."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, width - len(sequence) :] = torch.from_numpy(np.asarray(sequence, dtype=np.int64))
        mask[i, width - len(sequence) :] = 1
    return ids, mask


def pad_pairs(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad (prompt, response) pairs in the layout above.

    Returns:
        ``input_ids`` and ``attention_mask`` [B, P + T − 1]: the last response token scores nothing and is left out.
        ``taken_ids`` [B, T]: the response tokens, 0 past the end; ``mask`` [B, T] bool: real ones.
    """
    ids, attention = left_pad(prompts)
    steps = max(map(len, responses))
    taken = torch.zeros(len(responses), steps, dtype=torch.long)
    mask = torch.zeros(len(responses), steps, dtype=torch.bool)
    for i, response in enumerate(responses):
        taken[i, : len(response)] = torch.from_numpy(np.asarray(response, dtype=np.int64))
        mask[i, : len(response)] = True
    return torch.cat([ids, taken[:, :-1]], 1), torch.cat([attention, mask[:, :-1].long()], 1), taken, mask


def positions(attention_mask: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Return the position of every token, with padding not counted; 0 at padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
