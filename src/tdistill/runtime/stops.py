"""Stop on SIGINT, SIGTERM and SIGHUP: at once, with one line that says what is kept and how to go on.

Files get their names only when they are whole, so a process may end between any two instructions. A stop is therefore no exception,
which a library could swallow or print: a thread hears of the signal, writes the line and ends the process. The thread also works while
the main thread is inside a long operation of torch.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tdistill.runtime.processes import is_main_process

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A launcher sends a second signal right after the terminal's. A person who presses Ctrl-C again needs longer.
SAME_STOP_SECONDS = 0.3
NOTHING = "before anything was written. The same command starts again."
SHOW_CURSOR = "\x1b[?25h\n"

# Nothing heavy is imported here: a stop must be understood from the first moment on.
_kept: list[Callable[[], str]] = []
_last_acts: list[Callable[[], None]] = []
_watching: "_Watcher | None" = None


@contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Let a stop inside the block print ``describe()``: whole sentences on what is kept and what the same command does next.

    It is called on another thread. It may read the disk.
    """
    _kept.append(describe)
    try:
        yield
    finally:
        _kept.remove(describe)


def before_end(act: Callable[[], None]) -> None:
    """Call ``act`` on another thread when a stop ends the process."""
    _last_acts.append(act)


def stop_line(signum: int) -> str:
    """Return the line that a stop prints."""
    from tdistill.runtime.errors import visible

    name = signal.Signals(signum).name
    for describe in reversed(_kept):
        with suppress(OSError, ValueError, KeyError, RuntimeError):  # the disk may be the reason for the stop
            return visible(f"tdistill: stopped by {name}. {describe()}").replace("\n", " ")
    return f"tdistill: stopped by {name} {NOTHING}"


@contextmanager
def watched() -> Iterator[None]:
    """Handle stops inside the block. Signals that were ignored before (``nohup``, background jobs) stay ignored.

    Outside the main thread, where Python allows no handlers, and inside another ``watched`` it does nothing.
    """
    global _watching
    if _watching is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watcher = _watching = _Watcher()
    try:
        yield
    finally:
        watcher.close()
        _watching = None


class _Watcher:
    """Watch for signals by a pipe that the interpreter's C handler writes to, whatever the main thread does."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        threading.Thread(target=self._listen, name="tdistill stops", daemon=True).start()
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)}
        for signum in self._before:
            signal.signal(signum, self._in_main_thread)

    def _in_main_thread(self, signum: int, _: object) -> None:
        # The C handler wrote to the pipe, unless another library (asyncio) put its own in place.
        if signal.set_wakeup_fd(self._write, warn_on_full_buffer=False) != self._write:
            os.write(self._write, bytes([signum]))

    def _listen(self) -> None:
        first: float | None = None
        while received := os.read(self._read, 1):
            signum = received[0]
            if signum not in self._before:
                continue
            if first is None:
                first = time.monotonic()
                threading.Thread(target=end, args=(signum,), daemon=True).start()
            elif time.monotonic() - first > SAME_STOP_SECONDS:
                os._exit(128 + signum)
        os.close(self._read)

    def close(self) -> None:
        """Put the earlier handlers back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._write)  # which ends the thread

    def leave_to_parent(self) -> None:
        """Let a forked worker hear of stops through its parent alone."""
        signal.set_wakeup_fd(-1)
        for signum in self._before:
            signal.signal(signum, signal.SIG_IGN if signum == signal.SIGINT else signal.SIG_DFL)


def end(signum: int) -> None:
    """Say what is kept, remove half-written files, and end this process with status 128 + ``signum`` in every case."""
    try:
        if signum != signal.SIGHUP and is_main_process():  # after SIGHUP there is no terminal
            cursor = SHOW_CURSOR if sys.stderr is not None and os.isatty(2) else ""
            os.write(2, f"{cursor}{stop_line(signum)}\n".encode("utf-8", "backslashreplace"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the main thread runs on for a moment, and may stumble over what follows
        if "multiprocessing" in sys.modules:
            for worker in sys.modules["multiprocessing"].active_children():
                worker.terminate()
        for act in _last_acts:
            act()
    finally:
        os._exit(128 + signum)


_forking = threading.local()


def _before_fork() -> None:
    # Until the child has its own handlers, a signal to it would be heard by the parent, whose pipe it has.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    global _watching
    if _watching is not None:
        _watching.leave_to_parent()
        _watching = None
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
