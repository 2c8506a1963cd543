"""How much is measured: the sizes of every section and the number of rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from schuss.bench.shapes import Workload, gpt2, mlp, small


@dataclass(frozen=True)
class Sizes:
    """One choice of all sizes.

    `rounds` are taken of what is in memory, `short_rounds` of what takes microseconds; a round of a contender lasts at
    least `least` seconds. `add` is the length of the vectors whose sum measures the machine.
    """

    rounds: int
    short_rounds: int
    least: float
    processes: int
    large: Workload = field(default_factory=gpt2)
    small: tuple[Workload, ...] = field(default_factory=lambda: (small(400), small(1000)))
    mlp: Workload = field(default_factory=lambda: mlp(64, 128, 64, 10))
    add: int = 2**25
    device: Workload = field(default_factory=lambda: small(4, 2**26).named("1.07 GB of weights"))
    embedding: tuple[int, int] = (1_000_000, 64)
    touched: float = 0.01
    arrays: int = 10_000_000
    peak_tensors: int = 32
    peak_elements: int = 2**20

    def rounds_of(self, workload: Workload) -> int:
        """How often each contender is timed on this workload."""
        return self.rounds if workload.in_memory else self.short_rounds


FULL = Sizes(rounds=9, short_rounds=25, least=5e-3, processes=5)
QUICK = Sizes(rounds=3, short_rounds=7, least=2e-3, processes=1)
