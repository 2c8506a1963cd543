"""Contenders timed in turn, round by round: what slows the machine for a while slows all of them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from time import perf_counter

from schuss.bench.report import Skipped, Timing
from schuss.machine import free_memory

Action = Callable[[], object]
_MACHINE = "the machine itself"


def wall_seconds(action: Action, times: int) -> float:
    """The mean time of a call."""
    start = perf_counter()
    for _ in range(times):
        action()
    return (perf_counter() - start) / times


def in_turn(
    contenders: Mapping[str, Action],
    rounds: int,
    least: float = 0.0,
    seconds: Callable[[Action, int], float] = wall_seconds,
) -> dict[str, tuple[float, ...]]:
    """Seconds per call of each contender in each round.

    Each is called twice before (what is found, compiled or allocated once is not a step's cost), and each round starts
    with another contender. A contender that takes less than `least` seconds is repeated within its round.
    """
    names = list(contenders)
    for action in contenders.values():
        action()
    once = {name: wall_seconds(action, 1) for name, action in contenders.items()}
    times = {name: max(1, math.ceil(least / max(took, 1e-9))) for name, took in once.items()}
    found: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(rounds if names else 0):
            first = k % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(seconds(contenders[name], times[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: tuple(took) for name, took in found.items()}


def timings(
    label: tuple[str, str, str],
    steps: Mapping[str, Action | str],
    rounds: int,
    least: float = 0.0,
    *,
    seconds: Callable[[Action, int], float] = wall_seconds,
    moved: int = 0,
    machine: tuple[Action, int] | None = None,
) -> list[Timing]:
    """A record of each contender, whose step is given, or what is wrong with it.

    `label` is section, workload and optimizer; `machine` an action that moves a known number of bytes in every round.
    """
    actions = {name: step for name, step in steps.items() if not isinstance(step, str)}
    if machine is not None:
        actions[_MACHINE] = machine[0]
    found = in_turn(actions, rounds, least, seconds)
    bandwidth = () if machine is None else tuple(machine[1] / took for took in found[_MACHINE])
    return [
        Timing(*label, name, problem=step)
        if isinstance(step, str)
        else Timing(*label, name, found[name], moved, bandwidth)
        for name, step in steps.items()
    ]


def too_large(section: str, what: str, needed: int) -> list[Skipped]:
    """That the machine has too little free memory for this, if so."""
    free = free_memory()
    if free is None or needed <= free:
        return []
    return [Skipped(section, f"{what} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} are free")]
