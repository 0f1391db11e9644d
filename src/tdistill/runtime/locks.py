"""Let one process at a time write into a directory. The kernel holds the lock, so it ends when its process is killed."""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tdistill.runtime.errors import OutputError
from tdistill.runtime.progress import say

LOCK = ".tdistill.lock"
BUSY = (errno.EACCES, errno.EAGAIN)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems
MOST_DESCRIPTION_BYTES = 10_000
# A process that was killed holds its locks until its last thread is gone and its memory is free.
GRACE_S = 2.0
POLL_S = 0.05


@dataclass(eq=False)
class _Held:
    inode: tuple[int, int]
    path: Path
    handle: int
    users: int = 0


# A process has one lock on a file, however often it opens it, and loses it when it closes any handle of that file. So every file is
# opened once, and its users are counted.
_held: dict[tuple[int, int], _Held] = {}
_guard = threading.RLock()  # a lock that is collected as garbage may release inside ``hold``


class Lock:
    """Hold a share of this process's lock on a file, from ``hold``. It ends with ``release``, with the object, or with the process."""

    def __init__(self, held: _Held | None):
        self._held = held
        self.release = weakref.finalize(self, _release, held)


def hold(path: Path, what: str) -> Lock:
    """Lock a file, and write into it which process holds it. A missing file is made.

    Args:
        path: the lock file. Its directory exists. Two names of one file are one lock.
        what: what the lock protects, for the message.

    Returns:
        The lock. This process may hold it several times. Forked children do not inherit it.

    Raises:
        OutputError: another process holds it. The message says which.
        OSError: the file can't be made.
    """
    with _guard:
        inode = _inode_at(path)
        if inode is None or inode not in _held:
            handle = _open_locked(path, what)
            if handle is None:
                return Lock(None)
            inode = _inode_of(os.fstat(handle))
            _held[inode] = _Held(inode, path, handle)
        held = _held[inode]
        held.users += 1
        return Lock(held)


def release_all() -> None:
    """Release every lock of this process."""
    with _guard:
        for held in list(_held.values()):
            _give_back(held)


def held_directories() -> list[Path]:
    """Return the directories with a lock of this process."""
    return [held.path.parent for held in list(_held.values())]


def gone_directory() -> Path | None:
    """Return a directory that was deleted or replaced while this process held its lock, if there is one."""
    return next((held.path.parent for inode, held in list(_held.items()) if _inode_at(held.path) != inode), None)


def _open_locked(path: Path, what: str) -> int | None:
    """Return the handle of the locked file, or None where the file system has no locks. Wait ``GRACE_S`` for a process that is ending."""
    last = time.monotonic() + GRACE_S
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _inode_of(os.fstat(handle)) == _inode_at(path):  # else it was deleted in between: lock the new one
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_this_process()).encode(), 0)
                return handle
        except OSError as error:
            holder = _holder(handle) if error.errno in BUSY else ""
            os.close(handle)
            if error.errno in UNSUPPORTED:
                say(f"{path.parent} has no file locks ({error.strerror}): take care that no other tdistill writes there.")
                return None
            if error.errno not in BUSY:
                raise
            if time.monotonic() < last:
                time.sleep(POLL_S)
                continue
            raise OutputError(f"{what} is in use by {holder}. Wait until it ends, stop it, or choose another place for the output.") from error
        os.close(handle)


def _this_process() -> dict[str, object]:
    # The first words only: an override may hold a token.
    command = shlex.join(["tdistill", *sys.argv[1:3]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), "command": command}


def _holder(handle: int) -> str:
    try:
        about = json.loads(os.pread(handle, MOST_DESCRIPTION_BYTES, 0))
        return f"process {about['pid']} on {about['host']}, since {about['since']} (`{about['command']}`)"
    except (OSError, ValueError, KeyError, TypeError):  # it is only being written
        return "another process"


def _release(held: _Held | None) -> None:
    with _guard:
        if held is None or _held.get(held.inode) is not held:
            return
        held.users -= 1
        if held.users == 0:
            _give_back(held)


def _give_back(held: _Held) -> None:
    # The name goes first: who has opened the file already will find that it has none, and take a new one.
    with suppress(OSError):
        if _inode_at(held.path) == held.inode:
            held.path.unlink()
    os.close(held.handle)
    del _held[held.inode]


def _inode_at(path: Path) -> tuple[int, int] | None:
    try:
        return _inode_of(os.stat(path, follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _inode_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
