"""Compute the bytes on disk of caches, checkpoints and students."""

from tdistill.planning.lengths import Lengths
from tdistill.planning.sizes import ModelSize

# Measured on the caches of the real pair (K = 65): Parquet with zstd.
PER_CANDIDATE = 3.62  # ids 2.02, log-probs 1.59
PER_TOKEN = 21.0  # log-probs, counts, masses, ids and text
PER_RESPONSE = 300.0  # prompt ids, keys
FLOAT32, ADAM = 4, 8


def cache_bytes(lengths: Lengths) -> int:
    """Return tokens·(21 + 3.62·K) + 300·responses bytes."""
    return int(lengths.tokens * (PER_TOKEN + PER_CANDIDATE * lengths.candidates) + PER_RESPONSE * lengths.responses)


def student_bytes(saved: int) -> int:
    """Return 4·P bytes: a model is saved in float32, and tied weights once.

    Args:
        saved: parameters that are saved: all, or those of the adapters.
    """
    return FLOAT32 * saved


def checkpoint_bytes(size: ModelSize, saved: int, target: bool) -> int:
    """Return 4·P_saved + 8·P_trainable + 4·P (with a target network) bytes: weights, both moments of Adam, and the target."""
    return FLOAT32 * saved + ADAM * size.trainable + (FLOAT32 * size.parameters if target else 0)


def checkpoints_kept(saves: int, limit: int | None) -> int:
    """Return how many checkpoints lie on the disk at once: the newest is written before the oldest goes.

    Args:
        saves: how often the run saves.
        limit: ``save_total_limit``; None: all are kept.
    """
    return saves if limit is None or limit <= 0 else min(saves, limit + 1)
