"""The most memory that a step holds, beside what weights, gradients and state need."""

from __future__ import annotations

import json

import torch

from schuss.bench.contenders import IMPLEMENTATIONS, OURS
from schuss.bench.processes import answer
from schuss.bench.processes.peak_memory import RESET
from schuss.bench.report import Peak, Skipped
from schuss.bench.sizes import Sizes


def measure(section: str, sizes: Sizes) -> list[Peak | Skipped]:
    """AdamW by every implementation, each in a process of its own."""
    if not RESET.exists():
        return [Skipped(section, "peak memory is read from Linux's /proc, which is not here")]
    needed = 4 * 4 * sizes.peak_tensors * sizes.peak_elements  # float32: weight, gradient, two averages
    records: list[Peak | Skipped] = []
    for name, how in {OURS: dict[str, bool](), **IMPLEMENTATIONS}.items():
        front = "schuss" if name == OURS else "torch"
        numbers = map(str, (torch.get_num_threads(), sizes.peak_tensors, sizes.peak_elements))
        try:
            peak = answer("peak_memory", front, "AdamW", json.dumps(how), *numbers)["peak"]
        except RuntimeError as problem:
            records.append(Skipped(section, f"{name}: {problem}"))
        else:
            records.append(Peak("AdamW", name, peak, needed))
    return records
