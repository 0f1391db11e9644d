"""Format numbers and Markdown tables for the pages of the documentation."""

from collections.abc import Sequence

MISSING = "–"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first column is aligned to the left, the others to the right."""
    rules = [":---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rules, *lines))


def number(value: float, digits: int, signed: bool = False) -> str:
    """Return a number with a true minus sign, and without a sign if it rounds to 0."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")


def estimate(mean: float, stderr: float, digits: int, signed: bool = False) -> str:
    """Return ``mean ± standard error``, or the mean alone if the standard error is not known."""
    error = f" ± {stderr:.{digits}f}" if stderr == stderr else ""
    return number(mean, digits, signed) + error


def p_text(p: float) -> str:
    """Return a p-value with three digits, as in ``.012`` or ``<.001``."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
