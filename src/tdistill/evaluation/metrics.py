"""Compute metrics of texts, and describe all metrics of an evaluation."""

import math
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer


def rouge_l(answer: str, references: Sequence[str], scorer: RougeScorer) -> float:
    """Return ROUGE-L F1 × 100: the best over several references, by rouge-score with its stemmer."""
    return 100.0 * max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in references)


def rouge_scorer() -> RougeScorer:
    """Make the scorer that ``rouge_l`` takes; it can be used many times."""
    return RougeScorer(["rougeL"], use_stemmer=True)


def distinct_n(text: str, n: int = 2) -> float:
    """Return the share of distinct n-grams among all n-grams of words; NaN for a text of fewer than n words.

    Words are separated by white space.

    Examples:
        >>> distinct_n("the cat and the cat", 2)  # the cat, cat and, and the, the cat
        0.75
    """
    words = text.split()
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


TEACHER = "teacher"  # the system that students are measured against
# metric → (title, unit or hint, which direction is better: "lower", "higher" or "" for neither)
METRICS: dict[str, tuple[str, str, str]] = {
    "rouge_l": ("ROUGE-L", "overlap with the reference answer, 0 to 100", "higher"),
    "teacher_nll": ("teacher NLL", "−log probability of the generated text under the teacher, nats per token", "lower"),
    "forward_kl": ("forward KL", "KL(teacher‖student), nats per token of held-out teacher text", "lower"),
    "reverse_kl": ("reverse KL", "KL(student‖teacher), nats per token of held-out teacher text", "lower"),
    "student_mass": ("mass on A_p", "the student's probability on A_p, the teacher's top-p candidates", "higher"),
    "entropy": ("entropy", "entropy of the distribution that the text is drawn from, nats per token", ""),
    "distinct_2": ("distinct-2", "distinct bigrams ÷ bigrams of an answer", ""),
    "mean_length": ("length", "tokens per answer", ""),
}
