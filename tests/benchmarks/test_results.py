"""The tables and figures of the documentation reproduce from the rows in docs/results."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_table_and_figure_is_what_the_rows_say():
    command = [sys.executable, str(ROOT / "benchmarks/results.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run benchmarks/results.py; stale: {done.stdout}{done.stderr}"
