"""Choose a head: which of the four answers an objective's needs, and what it costs."""

from dataclasses import dataclass

from tdistill.models.head.full import WIDE
from tdistill.models.head.readout import After
from tdistill.recipe.schema import HeadConfig
from tdistill.runtime.errors import ConfigError

# Needs that no partial sum over the vocabulary answers.
WHOLE = frozenset({"max", "entropy"})
PARTITION = frozenset({"log_z"})


@dataclass(frozen=True)
class Head:
    """Hold how a student's logits are computed.

    Args:
        name: auto, full, chunked, candidates or sampled.
        after: what the model does to the output of its head; None for ``full``, which runs the model's own code.
        samples: number of tokens drawn, for ``sampled``.
    """

    name: str = "full"
    after: After | None = None
    samples: int = 0


def check_head(config: HeadConfig, needs: frozenset[str], objective: str, every_token: bool = False) -> None:
    """Check that a head can answer what an objective needs.

    Args:
        config: the head that was asked for.
        needs: the objective's.
        objective: its name, for the message.
        every_token: the action space is the whole vocabulary (p = 1).

    Raises:
        ConfigError: it can't, with the heads that can.
    """
    why = _refusal(config.name, needs, every_token)
    if why is not None:
        able = [name for name in ("full", "chunked", "candidates", "sampled") if _refusal(name, needs, every_token) is None]
        raise ConfigError(f"head: {config.name} can't serve {objective}: {why}. Use head: auto, or one of {', '.join(able)}.")


def name_for(head: Head, needs: frozenset[str], every_token: bool, exact: bool) -> str:
    """Return the head of one pass: the one asked for, or the cheapest exact one where it can't serve the pass, or may not estimate."""
    serves = head.name != "auto" and _refusal(head.name, needs, every_token) is None
    if serves and not (exact and head.name == "sampled"):
        return head.name
    return "candidates" if _refusal("candidates", needs, every_token) is None else "chunked"


def _refusal(name: str, needs: frozenset[str], every_token: bool) -> str | None:
    if name not in ("candidates", "sampled"):
        return None
    if every_token or needs & WIDE:
        return "it reads every logit, and this head computes those of some tokens alone"
    if needs & WHOLE:
        return "it reads the largest logit of all tokens, which those of some do not give"
    if name == "candidates" and needs & PARTITION:
        return "it reads the log-partition over all tokens (log_z), which the candidates alone do not give"
    if name == "sampled" and not needs & PARTITION:
        return "it reads no log-partition, so that nothing is estimated; `candidates` is exact for it"
    return None
