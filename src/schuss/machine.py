"""What this machine is and has: its processor, cores and memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def processor() -> str:
    """The processor by name, as the system says it."""
    return _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: Any = None) -> int | None:
    """Bytes that a new allocation could get, on a torch device or without one in main memory; None where not known."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device is not None and device.type != "cpu":
        return None
    available = _field("/proc/meminfo", "MemAvailable")  # Linux counts what its caches would give back
    return 1024 * int(available.split()[0]) if available else _pages("SC_AVPHYS_PAGES")


def total_memory() -> int | None:
    """Bytes that this machine or its container has; None where that is not known."""
    found = _pages("SC_PHYS_PAGES")
    if found is None:
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return found


def _field(file: str, name: str) -> str:
    """The value of the first `name: value` in a file of the system; nothing where there is none."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def _pages(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
