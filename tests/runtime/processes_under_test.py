"""Real processes of the command line, to which tests send real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0  # for a busy machine
TDISTILL = ("-m", "tdistill")


def _plain_signals() -> None:
    # A job in the background of a shell ignores Ctrl-C, and a child inherits that.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def start(*argv: Any, python: tuple[str, ...] = TDISTILL, before: Callable[[], None] = _plain_signals, **options: Any) -> subprocess.Popen:
    """Start ``python PYTHON... ARGV...`` in a session of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, *python, *map(str, argv)]
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=before, bufsize=0, **streams)


def script(text: str, **options: Any) -> subprocess.Popen:
    """Start a Python program that prints ``ready`` when it is to be disturbed, and wait until it does."""
    process = start(text, python=("-c",), **options)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"ready", process.communicate()[1].decode()
    return process


def wait_for(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    """Wait until something is there, while the process runs."""
    end = time.monotonic() + PATIENCE_S
    while not ready():
        assert process.poll() is None, f"it ended with {process.returncode} before: {process.communicate()[1].decode()}"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


@dataclass(frozen=True)
class Stopped:
    """How a process ended after a signal."""

    status: int
    errors: str
    seconds: float

    @property
    def line(self) -> str:
        """The one line that says what is kept."""
        (line,) = [x for x in self.errors.splitlines() if x.startswith("tdistill: stopped")]
        return line


def stop(process: subprocess.Popen, signum: int, group: bool = False) -> Stopped:
    """Send a signal, to the process or to its group as a terminal does, and wait for the end."""
    began = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, signum)
    process.wait(PATIENCE_S)
    seconds = time.monotonic() - began
    return Stopped(process.returncode, process.communicate()[1].decode(), seconds)


def finish(*argv: Any) -> str:
    """Run a command to its end; what it printed."""
    process = start(*argv)
    out, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return (out + errors).decode()


def matches(root: Path, pattern: str) -> Callable[[], bool]:
    """Whether a file of the pattern is there."""
    return lambda: next(root.glob(pattern), None) is not None
