"""What a dense second-order step costs before it is paid: d² memory and d³ time, on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from schuss.errors import whole
from schuss.machine import free_memory, total_memory
from schuss.units import human_bytes, human_seconds

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
    d, probe = whole("d", d, 0), whole("probe", probe, 1)
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
    """Memory that a new allocation on `device` could get, in bytes; where the system does not say, a guess."""
    return free_memory(device) or total_memory() or 4 * 2**30
