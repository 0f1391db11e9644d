"""The tables and figures of the documentation reproduce from the rows in docs/results."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["results.py", "figures.py"])
def test_every_table_and_figure_is_what_the_rows_say(script):
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run benchmarks/{script}; stale: {done.stdout}{done.stderr}"
