"""Write each verdict to the disk at once, as JSON lines, so that a stopped judge can go on where it was."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from tdistill.judge.pairs import read_json_lines
from tdistill.judge.score import CUT_OFF, VERDICTS
from tdistill.runtime.errors import DataError, OutputError

COLUMNS = ("key", "verdict", "failure", "served_model", "max_tokens", "options")


class Journal:
    """Keep the rows of a file by their ``key``; threads may share it.

    Raises:
        DataError: the file holds something else.
        OutputError: it can't be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self.rows: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        try:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1  # a kill may have left a part of the last line
            rows = read_json_lines(path, COLUMNS, content[:whole])
        except DataError as error:
            raise DataError(f"{error} Verdicts would be added to this file: choose another --output, or repair it.") from error
        except OSError as error:
            raise OutputError(f"Can't read {path}: {error.strerror}.") from error
        if content and not rows:
            raise DataError(f"{path} holds no whole line: choose another --output, or remove it.")
        if whole < len(content):
            os.truncate(path, whole)
        for number, row in enumerate(rows, start=1):
            self._check(number, row)
            self.rows[row["key"]] = row

    def _check(self, number: int, row: dict[str, Any]) -> None:
        """Refuse a row that no judge wrote, since a value that is not a verdict would count as one."""
        where, verdict, failure = f"{self.path}, row {number}", row["verdict"], row["failure"]
        judged = isinstance(verdict, str) and verdict in VERDICTS and failure is None
        failed = verdict is None and isinstance(failure, str)
        right = (
            (judged or failed)
            and isinstance(row["key"], str)
            and isinstance(row["served_model"], str | None)
            and isinstance(row["options"], dict)
            and type(row["max_tokens"]) is int
            and all(row.get(name) is None or type(row[name]) is int for name in ("prompt_tokens", "completion_tokens"))
        )
        if not right:
            raise DataError(
                f"{where} is no judge's verdict: {row!r:.200}. Remove that line, and its question is asked again; or choose another --output."
            )
        before = self.rows.get(row["key"])
        if before is not None and before["verdict"] not in (None, verdict):
            raise DataError(f"{where} contradicts an earlier verdict on the same question: remove one of the two (key {row['key']!r:.40}).")

    def answers(self, key: str, max_tokens: int) -> bool:
        """Tell whether a question has its reply, which was not cut off at fewer tokens than are allowed now."""
        row = self.rows.get(key)
        return row is not None and not (row["failure"] == CUT_OFF and row["max_tokens"] < max_tokens)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, and return after it is on the disk."""
        line = json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with self._lock, self.path.open("ab") as handle:
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise OutputError(f"Can't write to {self.path}: {error.strerror}. What is in it is kept; run again to go on.") from error
        self.rows[row["key"]] = row
