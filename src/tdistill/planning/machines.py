"""Say what a machine has and how fast it is: this one by measuring, others by a table of public peak numbers."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from tdistill.models.load import DTYPES
from tdistill.runtime.errors import ConfigError, nearest

GB = 10**9


@dataclass(frozen=True)
class Device:
    """Hold a device's memory in bytes, its dense matrix products in FLOP/s by dtype, and its memory's bytes a second."""

    name: str
    memory: int
    flops: dict[str, float]
    bandwidth: float
    gpu: bool = True


def _gpu(name: str, gigabytes: float, sixteen: float, thirty_two: float, terabytes: float) -> Device:
    flops = {"float32": thirty_two * 1e12, "bfloat16": sixteen * 1e12, "float16": sixteen * 1e12}
    return Device(name, int(gigabytes * GB), flops, terabytes * 1e12)


# Vendors' data sheets: dense, without sparsity; float32 without TF32.
DEVICES: dict[str, Device] = {
    "h100": _gpu("h100", 80, 989, 67, 3.35),
    "h200": _gpu("h200", 141, 989, 67, 4.8),
    "a100": _gpu("a100", 80, 312, 19.5, 2.04),
    "l40s": _gpu("l40s", 48, 362, 91.6, 0.864),
    "rtx4090": _gpu("rtx4090", 24, 165, 82.6, 1.008),
}
# Shares of the peak that training and writing reach in practice.
UTILISATION, BANDWIDTH_USED = 0.4, 0.6
SECONDS, LEAST_TRIES = 0.15, 5  # of a measurement
ROWS, WIDTH = 1024, 1024


@dataclass(frozen=True)
class Machine:
    """Hold where a plan is for: the device that computes, and what is free; None: not known."""

    device: Device
    free_device: int | None  # bytes of the GPU's memory
    free_memory: int | None
    measured: bool  # the speeds are of this machine, not peak numbers

    def rate(self, dtype: str) -> float:
        """Return the FLOP/s to count with."""
        return self.device.flops[dtype] * (1.0 if self.measured else UTILISATION)

    @property
    def bandwidth(self) -> float:
        """Return the bytes a second to count with."""
        return self.device.bandwidth * (1.0 if self.measured else BANDWIDTH_USED)


def machine(name: str | None, dtypes: set[str]) -> Machine:
    """Return this machine, calibrated in the dtypes of the recipe; or a device of the table, by its name.

    Raises:
        ConfigError: the name is neither of the table nor ``cpu``.
    """
    if name is not None and name not in (*DEVICES, "cpu"):
        raise ConfigError(f"--device {name!r:.60} is not known.{nearest(name, [*DEVICES, 'cpu'])}")
    if name in DEVICES:
        device = DEVICES[name]
        return Machine(device, device.memory, None, measured=False)
    place = torch.device("cuda" if torch.cuda.is_available() and name is None else "cpu")
    memory = psutil.virtual_memory()
    free = torch.cuda.mem_get_info()[0] if place.type == "cuda" else None
    flops = {dtype: _flops(place, DTYPES[dtype]) for dtype in sorted(dtypes)}
    title = torch.cuda.get_device_name() if place.type == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    total = torch.cuda.mem_get_info()[1] if place.type == "cuda" else memory.total
    return Machine(Device(title, total, flops, _bandwidth(place), place.type == "cuda"), free, memory.available, measured=True)


def free_disk(directory: Path) -> int:
    """Return the free bytes of the disk on which a directory lies, or will lie."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _flops(place: torch.device, dtype: torch.dtype) -> float:
    a, b = torch.randn(ROWS, WIDTH, device=place).to(dtype), torch.randn(WIDTH, WIDTH, device=place).to(dtype)
    return 2 * ROWS * WIDTH * WIDTH / _seconds(lambda: a @ b, place)


def _bandwidth(place: torch.device) -> float:
    a = torch.zeros(16 << 20, device=place)  # larger than caches
    b = torch.empty_like(a)
    return 2 * a.nbytes / _seconds(lambda: b.copy_(a), place)


def _seconds(work: Callable[[], object], place: torch.device) -> float:
    """Return the shortest time that a piece of work took, over a fraction of a second of tries."""
    work()  # the first one claims memory
    best, tries, end = float("inf"), 0, time.monotonic() + SECONDS
    while tries < LEAST_TRIES or time.monotonic() < end:
        tries += 1
        began = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
