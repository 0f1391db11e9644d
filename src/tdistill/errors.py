"""Errors a user can act on: the command line prints them without a traceback and exits with status 2."""

import difflib
from collections.abc import Iterable


class TdistillError(Exception):
    """Base of every error whose message says what was got and what to do."""


class ConfigError(TdistillError):
    """A recipe, an override or an objective's arguments are wrong."""


class DataError(TdistillError):
    """Prompts, a tokenizer or a template do not fit."""


class CacheError(TdistillError):
    """A roll-out cache is damaged, incomplete, or made with other settings."""


class OutputError(TdistillError):
    """The output directory can't take what a stage makes."""


class ModelError(TdistillError):
    """A model cannot be found, loaded or pruned as asked."""


class TrainingError(TdistillError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient stopped being a number."""


class JudgeError(TdistillError):
    """A judge's endpoint refuses, can't be reached, or speaks another protocol."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
