"""Say what of an unfinished artefact is kept, by the files that are whole."""

import json
from collections import Counter
from pathlib import Path

from tdistill.evaluation.answer_files import JOURNAL
from tdistill.experiment.artefact import Artefact

# Files that are whole when they have their names, with what they are.
WHOLE = {
    "shard-*.parquet": ("shard of roll-outs", "shards of roll-outs"),
    "answers.jsonl": ("file of answers", "files of answers"),
}
CHECKPOINTS, COMPLETE, STATE = "checkpoints", "tdistill.complete", "trainer_state.json"
AGAIN = "The same command goes on from there."


def kept_of_artefact(artefact: Artefact, root: Path) -> str:
    """Return what a stop leaves while an artefact is made."""
    found = Counter({words: len(list(artefact.directory.glob(pattern))) for pattern, words in WHOLE.items()})
    parts = [f"{n} {words[n > 1]}" for words, n in found.items() if n] + _batches(artefact.directory) + _checkpoint(artefact.directory)
    if not parts:
        return f"What was complete in {root} is kept, and nothing of `{artefact.title}` was yet. {AGAIN}"
    return f"Kept: what was complete in {root}, and of `{artefact.title}` {', '.join(parts)}. {AGAIN}"


def kept_of_run(root: Path) -> str:
    """Return what a stop between two artefacts leaves."""
    return f"What was complete in {root} is kept. {AGAIN}"


def _batches(directory: Path) -> list[str]:
    """Return how many batches of answers are whole, if answering has begun and has not ended."""
    journal = directory / JOURNAL
    count = journal.read_bytes().count(b"\n") if journal.is_file() else 0
    return [f"{count} {'batches' if count > 1 else 'batch'} of answers"] if count else []


def _checkpoint(student: Path) -> list[str]:
    """Return the newest whole checkpoint of a student, if it has one."""
    whole = [mark.parent for mark in student.glob(f"{CHECKPOINTS}/checkpoint-*/{COMPLETE}")]
    if not whole:
        return []
    newest = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))
    steps = json.loads((newest / STATE).read_text(encoding="utf-8"))["max_steps"]
    return [f"the checkpoint at step {newest.name.rsplit('-', 1)[1]} of {steps}"]
