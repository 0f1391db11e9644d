"""Run the stages of a recipe, each in a process of its own, and watch how much memory and disk each takes."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tdistill.runtime.files import write_json

STAGES = ("models", "rollout", "train", "evaluate")
PAGE = os.sysconf("SC_PAGE_SIZE")
EVERY, DISK_EVERY = 0.005, 0.2  # seconds between two looks
# glibc keeps freed memory below this size for later. With the threshold fixed, every larger piece goes back to the system at once.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "131072"}


@dataclass
class Peak:
    """Hold the most that a stage took, in bytes above what its process had after its imports, and its seconds."""

    resident: int = 0  # pages of weights that the system maps from their files included
    anonymous: int = 0  # without them
    disk: int = 0  # of the output directory
    disk_after: int = 0
    seconds: float = 0.0


def measure(recipe: Path, stage: str, output: Path, returning: bool) -> Peak:
    """Run a stage and return its peaks.

    Args:
        recipe: its output directory holds the stages before this one.
        stage: a key of ``graph.STAGES``.
        output: the output directory.
        returning: let glibc return freed memory at once.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(RETURNING if returning else {})}
    command = [sys.executable, str(Path(__file__).with_name("plan_child.py")), str(recipe), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()
        peak = _watch(child, output)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}")
    peak.disk_after = size_of(output)
    peak.disk = max(peak.disk, peak.disk_after)
    return peak


def _watch(child: subprocess.Popen[str], output: Path) -> Peak:
    first, mapped = _memory(child.pid) or (0, 0)
    began, peak, looked = time.monotonic(), Peak(), 0.0
    while child.poll() is None:
        found = _memory(child.pid)
        if found is not None:
            peak.resident = max(peak.resident, found[0] - first)
            peak.anonymous = max(peak.anonymous, found[0] - found[1] - first + mapped)
        if time.monotonic() - looked > DISK_EVERY:
            looked = time.monotonic()
            peak.disk = max(peak.disk, size_of(output))
        time.sleep(EVERY)
    peak.seconds = time.monotonic() - began
    return peak


def _memory(pid: int) -> tuple[int, int] | None:
    """Return the resident bytes of a process, and how many of them are mapped from files; None if it is gone."""
    try:
        numbers = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (int(numbers[1]) * PAGE, int(numbers[2]) * PAGE) if len(numbers) > 2 else None


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory, some of which may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(root, name)
            try:
                total += 0 if os.path.islink(path) else os.stat(path).st_size
            except FileNotFoundError:
                continue
    return total


def measure_all(recipe: Path, output: Path, file: Path) -> dict[str, dict[str, float]]:
    """Measure every stage with freed memory returned at once, and training with glibc's defaults too, and keep what a file holds already.

    Returns:
        "STAGE returned", and "train kept" → peaks.
    """
    found = read_measured(file)
    if any(f"{stage} returned" not in found for stage in STAGES):
        shutil.rmtree(output, ignore_errors=True)
        for stage in STAGES:
            found[f"{stage} returned"] = asdict(measure(recipe, stage, output, returning=True))
            write_json(file, found)
    if "train kept" not in found:
        shutil.rmtree(output / "students", ignore_errors=True)
        found["train kept"] = asdict(measure(recipe, "train", output, returning=False))
        write_json(file, found)
    return found


def read_measured(file: Path) -> dict[str, dict[str, float]]:
    """Read what was measured; nothing where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
