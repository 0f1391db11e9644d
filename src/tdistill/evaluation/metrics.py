"""Compute metrics of texts and of distributions, one number for each prompt, and their means."""

import math
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from tdistill.report.data import Estimate


def rouge_l(answer: str, references: Sequence[str], scorer: RougeScorer) -> float:
    """Return ROUGE-L F1 × 100, the best over several references (rouge-score with its stemmer)."""
    return 100.0 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)


def rouge_scorer() -> RougeScorer:
    """Return the scorer that ``rouge_l`` takes."""
    return RougeScorer(["rougeL"], use_stemmer=True)


def distinct_n(text: str, n: int = 2) -> float:
    """Return distinct n-grams of white-space words ÷ all of them; NaN for a text of fewer than n words."""
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and standard error over prompts; NaN entries (undefined for a prompt) are left out."""
    x = np.asarray([v for v in values if not math.isnan(v)], dtype=np.float64)
    if len(x) == 0:
        return Estimate(math.nan, math.nan, 0)
    stderr = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return Estimate(float(x.mean()), stderr, len(x))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Estimate of a − b over the prompts where both are defined; both lists are in the same order of prompts."""
    return estimate([x - y for x, y in zip(a, b, strict=True)])
