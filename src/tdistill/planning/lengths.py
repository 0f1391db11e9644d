"""Find how many prompts, tokens and candidates each split has: what is known, and bounds for what is not."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tdistill.data.prompts import tokenize_prompts
from tdistill.experiment.experiment import SPLITS, Experiment
from tdistill.experiment.graph import is_complete
from tdistill.experiment.models import load_own_tokenizer
from tdistill.experiment.rollouts import rollouts
from tdistill.models.tokenizer import load_tokenizer
from tdistill.recipe.schema import RolloutConfig

# p → mean number of candidates of SmolLM2-135M-Instruct on its own text (docs/concepts/candidates.md).
TYPICAL = ((0.5, 5.3), (0.8, 39.5), (0.9, 118.1), (0.95, 282.8))


@dataclass(frozen=True)
class Lengths:
    """Hold the sizes of one split's roll-outs."""

    prompts: int
    mean_prompt: float  # tokens
    longest_prompt: int
    responses: int
    mean_response: float  # tokens
    longest_response: int
    candidates: float  # of a token, mean
    known: bool  # of a complete cache; False: the recipe's bound on the response, or what the user knows
    typical: bool = False  # the number of candidates is a typical one

    @property
    def tokens(self) -> float:
        """Return the number of response tokens."""
        return self.responses * self.mean_response


@dataclass(frozen=True)
class Expected:
    """Hold what the user knows better than the recipe's bounds; None: nothing."""

    response: float | None = None
    candidates: float | None = None


def typical_candidates(rollout: RolloutConfig) -> float:
    """Return a typical number of candidates of a token at the recipe's p: between the measured ones, linear in the logarithms of K and 1 − p.

    Examples:
        >>> typical_candidates(RolloutConfig(teacher_top_p=0.8)), typical_candidates(RolloutConfig(teacher_top_p=0.95, max_candidates=100))
        (39.5, 100.0)
    """
    p = min(max(rollout.teacher_top_p, TYPICAL[0][0]), 0.99)
    below = [pair for pair in TYPICAL[:-1] if pair[0] <= p][-1]
    above = TYPICAL[TYPICAL.index(below) + 1]
    share = (math.log(1 - p) - math.log(1 - below[0])) / (math.log(1 - above[0]) - math.log(1 - below[0]))
    found = math.exp(math.log(below[1]) + share * (math.log(above[1]) - math.log(below[1])))
    return min(round(found, 6), float(rollout.max_candidates or math.inf))


def tokenizer_of(experiment: Experiment) -> PreTrainedTokenizerBase:
    """Return the teacher's tokenizer, from its artefact where it is complete."""
    if is_complete(experiment, "models"):
        return load_own_tokenizer(experiment)
    return load_tokenizer(experiment.teacher_source, experiment.recipe.teacher.trust_remote_code)


def split_lengths(experiment: Experiment, expected: Expected) -> dict[str, Lengths]:
    """Return split → lengths. Complete roll-outs are counted; others are bounded by the recipe.

    Raises:
        DataError: a prompt set can't be read, or has no prompt that is short enough.
    """
    tokenizer = tokenizer_of(experiment)
    made = rollouts(experiment) if is_complete(experiment, "models") else {}
    found = {}
    for split in SPLITS:
        data = experiment.recipe.data
        prompts, _ = tokenize_prompts(experiment.prompts(split), tokenizer, data.max_prompt_length, data.overlong)
        lengths = [len(p.ids) for p in prompts]
        artefact = made.get(split)
        notes = experiment.notes(artefact) if artefact is not None and experiment.is_complete(artefact) else None
        found[split] = _lengths(lengths, experiment.recipe.rollout, notes, expected)
    return found


def _lengths(prompts: list[int], rollout: RolloutConfig, notes: dict[str, Any] | None, expected: Expected) -> Lengths:
    longest = rollout.max_completion_length
    if notes is not None:
        responses, mean = notes["responses"], notes["tokens"] / notes["responses"]
        candidates = notes["candidates"] / notes["tokens"]
    else:
        responses = len(prompts) * rollout.num_generations
        mean = min(expected.response or longest, longest)
        candidates = expected.candidates or typical_candidates(rollout)
    return Lengths(
        prompts=len(prompts),
        mean_prompt=sum(prompts) / len(prompts),
        longest_prompt=max(prompts),
        responses=responses,
        mean_response=mean,
        longest_response=longest,
        candidates=candidates,
        known=notes is not None,
        typical=notes is None and expected.candidates is None,
    )
