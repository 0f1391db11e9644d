"""Define the errors that a user can act on: the command line prints them without a traceback and exits with status 2."""

import difflib
import re
from collections.abc import Iterable

LONGEST_MESSAGE = 2_000  # characters of an error on a terminal
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]")


class TdistillError(Exception):
    """Report an error that a user can act on: the message says what is wrong and what to do. It is the base of all others."""


class ConfigError(TdistillError):
    """Report that a recipe, an override or an objective's arguments are wrong."""


class DataError(TdistillError):
    """Report that prompts, a tokenizer or a template do not fit."""


class CacheError(TdistillError):
    """Report that a roll-out cache is damaged, incomplete, or made with other settings."""


class OutputError(TdistillError):
    """Report that the output directory can't take what a stage makes."""


class ModelError(TdistillError):
    """Report that a model cannot be found, loaded or pruned as asked."""


class TrainingError(TdistillError):
    """Report that training cannot go on."""


class NonFiniteLossError(TrainingError):
    """Report that the loss or its gradient is NaN or infinite."""


class JudgeError(TdistillError):
    """Report that a judge's endpoint refuses, can't be reached, or speaks another protocol."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def visible(text: str) -> str:
    """Replace control characters, text-direction overrides and lone surrogates by symbols that show them."""
    text = text.replace("\r\n", "\n")
    return _CONTROLS.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)


def shown(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Make a message safe for a terminal: control characters become visible, and the middle of a long text is left out."""
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]} [… {len(text) - 2 * half:,} characters …] {text[-half:]}"
    return visible(text)


def brief(value: object, longest: int = 80) -> str:
    """Describe a wrong value for a message: at most ``longest`` characters of it, and only the kind of a list or a mapping."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
