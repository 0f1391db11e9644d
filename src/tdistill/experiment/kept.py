"""Say what of an unfinished stage is kept, by the files that are whole."""

import json
from collections import Counter
from pathlib import Path

# Files that are whole when they have their names, with what they are.
WHOLE = {
    "*/shard-*.parquet": ("shard of roll-outs", "shards of roll-outs"),
    "*/done.json": ("finished student", "finished students"),
    "**/answers/*.jsonl": ("file of answers", "files of answers"),
    "**/scores/*.json": ("system's scores", "systems' scores"),
}
CHECKPOINTS, COMPLETE, STATE = "checkpoints/checkpoint-*", "tdistill.complete", "trainer_state.json"


def kept_of_stage(name: str, root: Path, directory: Path) -> str:
    """Return what a stop in the stage leaves.

    Args:
        name: the stage, or another measurement of a run.
        root: the output directory.
        directory: where the stage writes.
    """
    found = Counter({words: len(list(directory.glob(pattern))) for pattern, words in WHOLE.items()})
    parts = [f"{n} {words[n > 1]}" for words, n in found.items() if n] + _checkpoints(directory)
    if not parts:
        return f"What was complete in {root} is kept, and nothing of `{name}` was yet. The same command goes on from there."
    return f"Kept: what was complete in {root}, and of `{name}` {', '.join(parts)}. The same command goes on from there."


def kept_of_run(root: Path) -> str:
    """Return what a stop between two stages leaves."""
    return f"What was complete in {root} is kept. The same command goes on from there."


def _checkpoints(directory: Path) -> list[str]:
    """Return the newest whole checkpoint of every student that has one."""
    newest: dict[Path, tuple[int, Path]] = {}
    for mark in [*directory.glob(f"{CHECKPOINTS}/{COMPLETE}"), *directory.glob(f"*/{CHECKPOINTS}/{COMPLETE}")]:
        checkpoint, student = mark.parent, mark.parent.parent.parent
        if not (student / "done.json").exists():
            newest[student] = max(newest.get(student, (-1, checkpoint)), (int(checkpoint.name.rsplit("-", 1)[1]), checkpoint))
    found = []
    for student, (step, checkpoint) in sorted(newest.items()):
        total = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["max_steps"]
        whose = f" of {student.name}" if student != directory else ""
        found.append(f"the checkpoint{whose} at step {step} of {total}")
    return found
