"""Stand in for functions that other branches bring. Deleted when they are merged."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

from tdistill.objectives.registry import OBJECTIVES
from tdistill.training.arguments import DEFAULT_ARGUMENTS

WATCHED = {"logging_steps", "report_to", "run_name", "save_total_limit", "disable_tqdm", "per_device_eval_batch_size"}


def shaping_arguments(arguments: Any) -> dict[str, Any]:
    """Stand in."""
    return {k: v for k, v in {**DEFAULT_ARGUMENTS, **arguments}.items() if k not in WATCHED}


def corpus_key(source: str) -> str:
    """Stand in."""
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]


def identity(objective: Any) -> Any:
    """Stand in."""
    terms = objective if isinstance(objective, list) else [objective]
    out = []
    for term in terms:
        fn = OBJECTIVES[term["name"]].fn
        defaults = {k: p.default for k, p in inspect.signature(fn).parameters.items() if p.kind is p.KEYWORD_ONLY}
        out.append({**defaults, **term})
    return out
