"""Run the command line in a forked process that is killed at a chosen moment. The parent has imported everything, so a run takes seconds."""

import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit event → positions of the paths among its arguments, and of the directory handle they are relative to.
PATHS = {
    "open": ((0,), None),
    "os.rename": ((0, 1), None),
    "os.remove": ((0,), 1),
    "os.mkdir": ((0,), 2),
    "os.rmdir": ((0,), 1),
    "os.link": ((0, 1), None),
    "os.symlink": ((0, 1), None),
    "os.truncate": ((0,), None),
    "os.chmod": ((0,), None),
    "shutil.rmtree": ((0,), None),
    "shutil.copyfile": ((0, 1), None),
    "shutil.move": ((0, 1), None),
}
REPORTED = b"."


@dataclass(frozen=True)
class Kill:
    """Name a moment: right before the n-th file operation in a folder of the output directory, or some seconds after the first."""

    stage: str  # the folder: a kind of artefact
    operation: int | None = None
    seconds: float | None = None


class Watch:
    """Count a process's file operations in each folder of a directory, and kill the process at the chosen one."""

    def __init__(self, root: Path, kill: Kill | None, report: int):
        self._root, self._kill, self._report = f"{root}{os.sep}", kill, report
        self.counts: dict[str, int] = {}
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in PATHS or (event == "open" and not (args[2] or 0) & WRITES):
            return
        positions, at = PATHS[event]
        handle = args[at] if at is not None and len(args) > at else None
        for position in positions:
            stage = self._stage(args[position], handle)
            if stage is not None:
                self._count(stage)
                return

    def _stage(self, path: Any, handle: Any) -> str | None:
        if isinstance(path, int):
            return None
        name = os.fsdecode(path)
        if isinstance(handle, int) and handle >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{handle}"), name)
        name = os.path.abspath(name)
        return name.removeprefix(self._root).split(os.sep)[0] if name.startswith(self._root) else None

    def _count(self, stage: str) -> None:
        self.counts[stage] = self.counts.get(stage, 0) + 1
        self.last[stage] = time.monotonic()
        self.first.setdefault(stage, self.last[stage])
        kill = self._kill
        if kill is None or kill.stage != stage:
            return
        if kill.operation == self.counts[stage]:
            os.kill(os.getpid(), signal.SIGKILL)
        if kill.seconds is not None and self.counts[stage] == 1:
            os.write(self._report, REPORTED)


@dataclass(frozen=True)
class Ended:
    """Hold how a process ended, and what an undisturbed one counted."""

    status: int  # exit status; −9: killed
    seconds: float
    operations: dict[str, int]
    durations: dict[str, float]


def run_command(argv: list[str], root: Path, log: Path, kill: Kill | None = None) -> Ended:
    """Run ``tdistill ARGV...`` in a fork, and kill it at the chosen moment unless it ends before.

    Args:
        argv: the command's arguments.
        root: its output directory.
        log: what it prints is added to this file.
        kill: the moment; None: undisturbed.
    """
    mine, theirs = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(mine)
        _child(argv, root, log, kill, theirs)
    os.close(theirs)
    if kill is not None and kill.seconds is not None and select.select([mine], [], [])[0] and os.read(mine, 1) == REPORTED:
        # Readable again: it ended by itself in the meantime.
        select.select([mine], [], [], kill.seconds)
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the id is still its own
    text = b""
    while part := os.read(mine, 1 << 16):
        text += part
    os.close(mine)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = [line.split() for line in text.decode().replace(".", "", 1 if text.startswith(REPORTED) else 0).splitlines()]
    return Ended(
        status, time.monotonic() - started, {name: int(count) for name, count, _ in lines}, {name: float(took) for name, _, took in lines}
    )


def _child(argv: list[str], root: Path, log: Path, kill: Kill | None, report: int) -> None:
    status = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        watch = Watch(root, kill, report)
        sys.addaudithook(watch)
        sys.argv = ["tdistill", *argv]
        from tdistill.cli import main

        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        lines = (f"{stage} {count} {watch.last[stage] - watch.first[stage]:.4f}\n" for stage, count in watch.counts.items())
        os.write(report, "".join(lines).encode())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
