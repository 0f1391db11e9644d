"""Compute metrics of texts and of distributions, one number for each prompt, and their means."""

import math
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer


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


TEACHER = "teacher"  # the system that students are measured against
# metric → (title, unit or hint, which direction is better: "lower", "higher" or "" for neither)
METRICS: dict[str, tuple[str, str, str]] = {
    "rouge_l": ("ROUGE-L", "against the reference answer, ×100", "higher"),
    "teacher_nll": ("teacher NLL", "nats per token of the generated text under the teacher", "lower"),
    "forward_kl": ("forward KL", "KL(teacher‖student), nats per token of held-out teacher text", "lower"),
    "reverse_kl": ("reverse KL", "KL(student‖teacher), nats per token of held-out teacher text", "lower"),
    "student_mass": ("mass on A_p", "student's probability on the teacher's candidates", "higher"),
    "entropy": ("entropy", "nats per token of the generated text under the distribution it was drawn from", ""),
    "distinct_2": ("distinct-2", "distinct bigrams ÷ bigrams of an answer", ""),
    "mean_length": ("length", "tokens per answer", ""),
}
