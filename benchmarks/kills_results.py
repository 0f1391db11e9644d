"""Collect the results of a finished run that must not depend on whether it was killed on the way."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdistill.experiment.latest import LATEST

# Times differ from run to run.
TIMED = ("seconds", "runtime", "per_second")
WEIGHTS = ("start/*/model.safetensors", "students/*/model.safetensors", "students/*/value_head.safetensors")
FILES = ("rollouts/*/shard-*.parquet", "students/*/rollouts/*/shard-*.parquet", "answers/*/answers.jsonl", *WEIGHTS)
VALUES = (
    "rollouts/*/manifest.json",
    "answers/*/scores.json",
    "divergences/*/scores.json",
    "concentration/*/sparsity.json",
    "*/*/log_history.json",
)
MANIFESTS = "*/*/artefact.json"
COMPARED = ("kind", "key", "group", "title", "settings", "inputs", "notes")  # of a manifest; the rest is of a machine and a time
PAGES = ("report/*/report.html", "report/*/report.md")
LEFTOVERS = ("**/*.partial", "**/checkpoint-*")


def results(root: Path) -> dict[str, Any]:
    """Return name → content of everything that must be the same: checksums of bytes, and parsed JSON without times."""
    found: dict[str, Any] = {}
    for path in _matching(root, FILES):
        found[_name(path, root)] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in _matching(root, VALUES):
        found[_name(path, root)] = untimed(json.loads(path.read_text(encoding="utf-8")))
    for path in _matching(root, (MANIFESTS,)):
        record = json.loads(path.read_text(encoding="utf-8"))
        found[_name(path, root)] = untimed({k: record[k] for k in COMPARED})
    for path in _matching(root, PAGES):
        found[_name(path, root)] = path.stat().st_size > 1000
    for path in _matching(root, LEFTOVERS):
        found[f"left over: {_name(path, root)}"] = True
    return found


def _matching(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files of a run, without the links by which people find them."""
    for pattern in patterns:
        yield from (path for path in root.glob(pattern) if path.relative_to(root).parts[0] != LATEST)


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Return a line for each result that differs, with where in it."""
    lines = []
    for name in sorted(expected.keys() | got.keys()):
        if name not in got:
            lines.append(f"{name}: missing")
        elif name not in expected:
            lines.append(f"{name}: not in the undisturbed run")
        elif expected[name] != got[name]:
            lines.append(f"{name}: {_first_difference(expected[name], got[name])}")
    return lines


def untimed(value: Any) -> Any:
    """Leave out what was measured in seconds."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not any(word in k for word in TIMED)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _first_difference(a: Any, b: Any, at: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        key = next(k for k in a if a[k] != b[k])
        return _first_difference(a[key], b[key], f"{at}.{key}")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        index = next(i for i in range(len(a)) if a[i] != b[i])
        return _first_difference(a[index], b[index], f"{at}[{index}]")
    return f"{at or 'content'} is {b!s:.120}, undisturbed {a!s:.120}"
