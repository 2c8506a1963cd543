"""The smallest fair race: every entry at its usual settings, from the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from schuss.lab.entries import Entry
from schuss.lab.protocol.run import Outcome, train
from schuss.lab.tasks.task import Task


@dataclass(frozen=True)
class Heat:
    """One finished run of the race."""

    entry: str
    seed: int
    outcome: Outcome


def heats(task: Task, entries: Sequence[Entry], seeds: Sequence[int]) -> Iterator[Heat]:
    """Run every entry from every seed, seed by seed, handing on each run as it ends.

    Seed by seed, so that whoever stops early has compared all entries from the same seeds.
    """
    for seed in seeds:
        for entry in entries:
            yield Heat(entry.name, seed, train(task, partial(entry.build, parameters=entry.usual), seed))
