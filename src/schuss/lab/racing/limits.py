"""How long one run may take and how much memory it may use, unless the user says so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from schuss.errors import refusal

GIB = 2**30
TIMES = 30  # as long as a run is expected to take: other optimizers cost more, and the machine is shared
FLOOR = 600.0  # seconds
PART = 0.8  # of the machine's memory, for all workers together
LEAST = 2 * GIB


@dataclass(frozen=True)
class Limits:
    """What one run may use; None is no limit."""

    seconds: float | None = None
    memory: float | None = None  # bytes, of a worker and its children

    @classmethod
    def of(cls, minutes: float | None, gibibytes: float | None, expected: float, workers: int) -> Limits:
        """As given; else a multiple of the expected seconds, and a worker's part of the machine's memory."""
        for name, value in (("run_minutes", minutes), ("run_memory", gibibytes)):
            if value is not None and not value > 0:
                raise refusal(name, value, "greater than 0")
        seconds = max(FLOOR, TIMES * expected) if minutes is None else 60 * minutes
        if gibibytes is not None:
            return cls(seconds, gibibytes * GIB)
        there = machine_memory()
        return cls(seconds, None if there is None else min(PART * there, max(LEAST, PART * there / workers)))

    def __str__(self) -> str:
        """In words."""
        parts = [] if self.seconds is None else [duration(self.seconds)]
        parts += [] if self.memory is None else [f"{self.memory / GIB:.3g} GiB"]
        return " and ".join(parts) or "no limit"


def duration(seconds: float) -> str:
    """In the unit that suits.

    >>> duration(600), duration(5400), duration(3)
    ('10 min', '1.5 h', '3 s')
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def machine_memory() -> int | None:
    """Bytes that this machine or its container has; None where that is not known."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return found
