"""Compute the memory of the student's head while it trains: logits, what the loss makes of them, and their gradients.

N tokens, V rows of the head, D its width, U candidates in the union of a batch, S tokens drawn beside them. A unit is N·V·4 bytes: the logits
in float32.
"""

# Units of a forward and backward pass, by what the objective needs; measured with 1,024 tokens, V = 151,665, D = 512.
TAIL, FULL_ROWS, DENSE = 4.4, 5.4, 6.6
LOGITS_ONLY = 2.2  # no need of the whole vocabulary
IN_BFLOAT16 = 1.0  # more units under autocast: logits and their gradient in bfloat16 too
VALIDATION = 3.0  # units of a validation: logits, and two steps of the entropy
BLOCK_UNITS = 4.0  # copies of a block's logits that a chunked head holds
FEW = 4.0  # copies of the candidates' logits
OVER_VOCABULARY = frozenset({"dense", "uniform"})
WHOLE = frozenset({"log_z", "max"})


def units(needs: frozenset[str]) -> float:
    """Return how many units a training step holds at once, from what an objective needs."""
    if needs & OVER_VOCABULARY:
        return DENSE
    if "taken" in needs:
        return FULL_ROWS
    return TAIL if needs & WHOLE else LOGITS_ONLY


def full(tokens: int, rows: int, needs: frozenset[str], bfloat16: bool = False) -> int:
    """Return u·4·N·V bytes: all logits at once.

    Examples:
        >>> full(8192, 152_000, frozenset({"log_z"})) / 2**30
        20.411...
    """
    return int((units(needs) + (IN_BFLOAT16 if bfloat16 else 0.0)) * 4 * tokens * rows)


def gradient(tokens: int, rows: int, bfloat16: bool = False) -> int:
    """Return 4·N·V bytes (2·N·V more in bfloat16): the logits' gradient, from which that of the head's weight is computed."""
    return (6 if bfloat16 else 4) * tokens * rows


def chunked(block_bytes: int, rows: int, width: int) -> int:
    """Return 4·block + 4·V·D bytes: some copies of a block's logits, and the gradient of the head's weight, which is there from the first
    block on.
    """
    return int(BLOCK_UNITS * block_bytes) + 4 * rows * width


def candidates(tokens: int, union: int, sampled: int, width: int) -> int:
    """Return 4·N·(U + S)·4 + 8·(U + S)·D bytes: logits of the candidates and of the drawn tokens, their rows, and the rows' gradient."""
    return int(FEW * 4 * tokens * (union + sampled)) + 8 * (union + sampled) * width


def validation(tokens: int, rows: int, needs: frozenset[str], bfloat16: bool = False) -> int:
    """Return the bytes of one batch of a validation, which measures the entropy and both KLs over all rows, without gradient."""
    more = (2.0 if needs & OVER_VOCABULARY else 0.0) + (0.5 if bfloat16 else 0.0)
    return int((VALIDATION + more) * 4 * tokens * rows)
