"""What was measured, as plain data: to be shown, and to be stored as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """What one contender took in each round, in seconds, or why it was not timed.

    `moved` is the bytes that the step cannot but move: the weight read and written, the gradient read, each slot of
    state read and written. `machine` is the bytes that `torch.add` moved per second in each of the same rounds.
    """

    section: str
    workload: str
    optimizer: str
    contender: str
    rounds: tuple[float, ...] = ()
    moved: int = 0
    machine: tuple[float, ...] = ()
    problem: str = ""

    @property
    def seconds(self) -> float:
        """The median round."""
        return statistics.median(self.rounds)

    def times(self, other: Timing) -> float:
        """How often as long as the other this one takes: the median over rounds of the ratio in each."""
        return statistics.median(a / b for a, b in zip(self.rounds, other.rounds, strict=True))

    @property
    def fraction(self) -> float:
        """Of the machine's own bandwidth: the median over rounds of the fraction in each."""
        return statistics.median(
            self.moved / mine / add for mine, add in zip(self.rounds, self.machine, strict=True)
        )


@dataclass(frozen=True)
class Peak:
    """The most memory that a step held, in bytes, and that of weights, gradients and state alone."""

    optimizer: str
    contender: str
    bytes: int
    needed: int


@dataclass(frozen=True)
class Driver:
    """What a step asks of a GPU's driver: kernels, copies and waits, and the seconds that the host is busy."""

    optimizer: str
    contender: str
    kernels: float
    copies: float
    waits: float
    host: float


@dataclass(frozen=True)
class Skipped:
    """A section that could not be measured here, and why."""

    section: str
    reason: str


Record = Timing | Peak | Driver | Skipped
_KINDS: dict[type[Record], str] = {Timing: "timings", Peak: "peaks", Driver: "drivers", Skipped: "skipped"}


@dataclass
class Report:
    """All of one run."""

    machine: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    timings: list[Timing] = field(default_factory=list[Timing])
    peaks: list[Peak] = field(default_factory=list[Peak])
    drivers: list[Driver] = field(default_factory=list[Driver])
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    interrupted: bool = False

    def add(self, records: Iterable[Record]) -> None:
        """Take in what a job measured."""
        for record in records:
            getattr(self, _KINDS[type(record)]).append(record)

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(file: Path) -> Report:
    """Read what `Report.save` wrote; `ValueError` if it is something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for timing in content["timings"]:
            timing |= {name: tuple(timing[name]) for name in ("rounds", "machine")}
        return Report(
            **content | {name: [kind(**one) for one in content[name]] for kind, name in _KINDS.items()}
        )
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(
            f"{file} is not what `schuss bench --json` writes ({problem}). Measure it anew."
        ) from None
