"""Make artefacts in several processes side by side, each with its share of the processor's cores."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import TdistillError, TrainingError, shown
from tdistill.runtime.progress import bar

POLL_SECONDS = 0.5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LOG = ".log.txt"  # in the directory of the artefact that a worker makes
FAILED = 1  # exit status of a worker

# (recipe, directory of the artefact) → makes it. It is imported by name in another process.
Work = Callable[[Recipe, Path], None]


def make_side_by_side(experiment: Experiment, artefacts: Sequence[Artefact], workers: int, work: Work) -> None:
    """Make artefacts whose inputs are complete, in at most ``workers`` processes at a time. All are tried.

    Raises:
        TrainingError: some could not be made; the message names them and says what their logs end with.
    """
    todo, failed = list(artefacts), dict[Artefact, int]()
    running: dict[Artefact, BaseProcess] = {}
    with bar("students", len(artefacts), "students") as progress:
        try:
            while todo or running:
                while todo and len(running) < workers:
                    artefact = todo.pop(0)
                    running[artefact] = _start(work, experiment.recipe, artefact, workers)
                time.sleep(POLL_SECONDS)
                for artefact in [a for a, process in running.items() if not process.is_alive()]:
                    status = running.pop(artefact).exitcode
                    failed |= {artefact: status} if status else {}
                    progress.advance(1)
        finally:
            for process in running.values():
                process.terminate()
    if failed:
        lines = [f"{a.title}: {_reason(status, a.directory / LOG)} (log: {a.directory / LOG})" for a, status in failed.items()]
        raise TrainingError(f"{len(failed)} of {len(artefacts)} were not made.\n" + "\n".join(lines))


def _start(work: Work, recipe: Recipe, artefact: Artefact, workers: int) -> BaseProcess:
    """Start a process with its share of the cores: a worker's small matrix products gain nothing from more threads.

    Ctrl-C reaches every process of a terminal. A worker does not hear it: this process ends it.
    """
    artefact.directory.mkdir(parents=True, exist_ok=True)
    share = {name: str(max(1, (os.cpu_count() or 1) // workers)) for name in THREADS if name not in os.environ}
    os.environ.update(share)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits it
    try:
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(work, recipe, artefact.directory), name=artefact.title)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in share:
            del os.environ[name]
    return process


def _run(work: Work, recipe: Recipe, directory: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    handle = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    try:
        work(recipe, directory)
    except TdistillError as error:
        print(shown(str(error)), file=sys.stderr)
        sys.exit(FAILED)


def _end_with_parent() -> None:
    """End this process when its parent is gone, even if that was killed: the same command would wait for the artefact's lock."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(FAILED)


def _reason(status: int, log: Path) -> str:
    """Return why a worker failed: its last words, or the signal that ended it."""
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it ended without a word"
