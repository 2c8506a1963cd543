"""How long one run may take and how much memory it may use, unless the user says so."""

from __future__ import annotations

from dataclasses import dataclass

from schuss.errors import real
from schuss.machine import total_memory
from schuss.units import human_seconds

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
            if value is not None:
                real(name, value, "greater than 0", lambda x: x > 0)
        seconds = max(FLOOR, TIMES * expected) if minutes is None else 60 * minutes
        if gibibytes is not None:
            return cls(seconds, gibibytes * GIB)
        there = total_memory()
        return cls(seconds, None if there is None else min(PART * there, max(LEAST, PART * there / workers)))

    def __str__(self) -> str:
        """In words."""
        parts = [] if self.seconds is None else [human_seconds(self.seconds)]
        parts += [] if self.memory is None else [f"{self.memory / GIB:.3g} GiB"]
        return " and ".join(parts) or "no limit"
