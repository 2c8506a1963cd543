"""What a dense second-order step costs before it is paid: d² memory and d³ time, on this machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

FLOPS_PER_CUBE = 9.0
"""Floating-point operations of a symmetric eigendecomposition with vectors, per d³ (Golub & Van Loan, §8.3)."""


@dataclass(frozen=True)
class DenseCost:
    """What one dense step over d weights takes: `bytes` of float64, `flops`, `seconds` at the measured rate."""

    d: int
    bytes: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"d = {self.d:,} weights: the d² Hessian, its eigenvectors and workspace take "
            f"{human_bytes(self.bytes)} in float64, and their d³ work is {self.flops:.1e} flops, "
            f"about {human_seconds(self.seconds)} per step here"
        )


def dense_cost(d: int, device: torch.device | str = "cpu", *, probe: int = 512) -> DenseCost:
    """Estimate one dense Newton step over d weights: three d×d float64 matrices and about 9 d³ flops.

    The rate is measured by one eigendecomposition of size `probe`, so `seconds` is an extrapolation by d³, and an
    upper one: larger matrices run at up to three times the rate of that size.

    >>> dense_cost(1000).bytes
    24000000
    """
    i = torch.arange(1.0, probe + 1, dtype=torch.float64, device=device)
    matrix = torch.cos(torch.outer(i, i))  # a spectrum without multiples, which would be found faster
    torch.linalg.eigh(matrix[:16, :16])
    begin = time.perf_counter()
    values, _ = torch.linalg.eigh(matrix)
    float(values[0])  # waits for the device
    rate = FLOPS_PER_CUBE * probe**3 / max(time.perf_counter() - begin, 1e-9)
    flops = FLOPS_PER_CUBE * float(d) ** 3
    return DenseCost(d, 3 * 8 * d * d, flops, flops / rate)


def free_bytes(device: torch.device) -> int:
    """Memory that a new allocation on `device` could get, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:  # Linux counts what its caches would give back
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if pages in names:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30


def human_bytes(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point.

    >>> human_bytes(2.4e13)
    '24.0 TB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} EB"


def human_seconds(seconds: float) -> str:
    """Seconds to two digits, in the largest unit that leaves at least 1.

    >>> human_seconds(7200.0), human_seconds(0.00014), human_seconds(1.234e12), human_seconds(5e14)
    ('2.0 hours', '140 µs', '39,000 years', '16 million years')
    """
    units = (
        *((31557600e9, "billion years"), (31557600e6, "million years"), (31557600.0, "years")),
        *((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")),
        *((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    )
    size, unit = next((pair for pair in units if seconds >= pair[0]), units[-1])
    count = float(f"{seconds / size:.1e}")
    return f"{count:,.1f} {unit}" if count < 10 else f"{count:,.0f} {unit}"
