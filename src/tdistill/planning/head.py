"""Compute the memory of each head while a student trains: logits, what the loss makes of them, and the gradient of the head's weight.

N tokens, V rows of the head, D its width, P pairs of a token and a candidate, S tokens drawn. A unit is four bytes a logit: float32.
"""

from dataclasses import dataclass

from tdistill.models.head.full import WIDE
from tdistill.objectives.contract import Scope

# Units of a forward and backward pass of the full head, by what the objective needs; measured with 1,024 tokens, V = 151,665, D = 512.
TAIL, FULL_ROWS, DENSE = 4.4, 5.4, 6.6
LOGITS_ONLY = 2.2  # no need of the whole vocabulary
TEACHER = 1.0  # more of an online teacher: its log-probs
IN_BFLOAT16 = 1.0  # more under autocast: logits and their gradient in bfloat16 too
VALIDATION = 3.0  # of the full head: logits, and two steps of the entropy
# Units of a block: its logits, which are used again, and the entropy of logged steps; more where the loss has a vocabulary axis.
NARROW, BLOCK_DENSE, BLOCK_IN_BFLOAT16 = 2.6, 4.8, 0.5
WATCHED = 3.0  # of a block of the diagnostics, which `candidates` and `sampled` compute apart at logged steps
PAIR_BYTES = 60  # of a token and a candidate: ids, places, logits, and the gradients of all of these
WHOLE = frozenset({"log_z", "max"})


@dataclass(frozen=True)
class Shape:
    """Hold the shape of what a head computes at once."""

    tokens: int  # N
    longest: int  # tokens of one response
    rows: int  # V
    width: int  # D
    bfloat16: bool = False

    @property
    def unit(self) -> int:
        """Return the bytes of all logits in float32."""
        return 4 * self.tokens * self.rows

    @property
    def weight(self) -> int:
        """Return the bytes of a gradient of the head's weight."""
        return 4 * self.rows * self.width


def units(needs: frozenset[str], online: bool = False) -> float:
    """Return how many units a training step of the full head holds at once, from what an objective needs."""
    if needs & WIDE:
        return DENSE + (TEACHER if online else 0.0)
    if "taken" in needs:
        return FULL_ROWS
    return TAIL if needs & WHOLE else LOGITS_ONLY


def full(shape: Shape, needs: frozenset[str], online: bool = False) -> int:
    """Return u·4·N·V bytes: all logits at once.

    Examples:
        >>> full(Shape(8192, 512, 152_000, 4096), frozenset({"log_z"})) / 2**30
        20.411...
    """
    return int((units(needs, online) + (IN_BFLOAT16 if shape.bfloat16 else 0.0)) * shape.unit)


def block(shape: Shape, budget: int, scope: Scope, wide: bool) -> int:
    """Return the bytes of a block's logits in float32: ``budget`` tokens, but no less than one response where the loss couples its steps.

    A loss that couples the responses of a batch reads it whole, if it reads every logit.
    """
    if scope == "batch" and wide:
        return shape.unit
    least = 1 if scope == "step" else shape.longest
    return 4 * min(max(budget // least * least, least), shape.tokens) * shape.rows


def chunked(shape: Shape, one: int, wide: bool, online: bool = False) -> int:
    """Return u·block + 12·N·D bytes: copies of a block's logits, and hidden states with their gradients.

    Args:
        shape: of the whole batch.
        one: from ``block``.
        wide: the loss has a vocabulary axis.
        online: it reads the teacher's logits too.
    """
    count = (BLOCK_DENSE if wide else NARROW) + (TEACHER if online else 0.0) + (BLOCK_IN_BFLOAT16 if shape.bfloat16 else 0.0)
    return int(count * one) + 12 * shape.tokens * shape.width


def candidates(shape: Shape, pairs: float) -> int:
    """Return 60·P + 12·N·D bytes: logits of the candidates alone."""
    return int(PAIR_BYTES * pairs) + 12 * shape.tokens * shape.width


def sampled(shape: Shape, pairs: float, drawn: int, budget: int) -> int:
    """Return 60·P + 12·N·D + 2.6·block + 8·S·D bytes: the candidates, a block of the drawn tokens' logits, and their rows with a gradient.

    Args:
        shape: of the whole batch.
        pairs: P.
        drawn: S.
        budget: tokens of a block whose logits have S columns.
    """
    of_drawn = int(NARROW * 4 * min(shape.tokens, budget) * drawn) + 8 * drawn * shape.width
    return candidates(shape, pairs) + of_drawn


def watched(shape: Shape, budget: int) -> int:
    """Return 3·block bytes: the diagnostics of a logged step, computed from all logits, ``budget`` tokens at a time."""
    return int(WATCHED * 4 * min(shape.tokens, budget) * shape.rows)
