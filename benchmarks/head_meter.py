"""Measure the time and the largest memory of a call, on a CPU or a GPU. Nothing of tdistill is imported here: other environments use it too."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Call = Callable[[], object]


def timed(call: Call, device: str = "cpu") -> dict[str, float]:
    """Return the seconds of a call, and those that the CPU worked for it. On a GPU both are the seconds until it is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu if device == "cpu" else seconds}


def largest_memory(call: Call, device: str = "cpu") -> dict[str, int]:
    """Return the most memory that a call adds, in bytes, counted in two ways.

    ``allocated``: of tensors that live at once, those inside operators included, as PyTorch's allocator reports them.
    ``resident``: of the process, as Linux counts it, or of the GPU, as PyTorch reserves it. On a CPU matrices that a library packs are in it,
    and freed memory that is used again is not.
    """
    return _of_cpu(call) if device == "cpu" else _of_gpu(call)


def _of_gpu(call: Call) -> dict[str, int]:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    call()
    torch.cuda.synchronize()
    return {"allocated": torch.cuda.max_memory_allocated() - before, "resident": torch.cuda.max_memory_reserved() - reserved}


def _of_cpu(call: Call) -> dict[str, int]:
    PEAK_RESET.write_text("5")  # sets the peak to the present
    before = _of_status("VmRSS")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    grown = _of_status("VmHWM") - before
    events = [(e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = largest = 0
    for _, nbytes in sorted(events, key=lambda event: event[0]):
        now += nbytes
        largest = max(largest, now)
    return {"allocated": largest, "resident": grown}


def _of_status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
