"""Contenders timed in turn, round by round: what slows the machine for a while slows all of them."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from time import perf_counter

Action = Callable[[], object]


def _seconds(action: Action, times: int) -> float:
    start = perf_counter()
    for _ in range(times):
        action()
    return (perf_counter() - start) / times


def _times(action: Action, least: float) -> int:
    """How often to repeat an action so that its clock runs for `least` seconds."""
    return max(1, math.ceil(least / max(_seconds(action, 1), 1e-9)))


def in_turn(contenders: Mapping[str, Action], rounds: int, least: float) -> dict[str, tuple[float, ...]]:
    """Seconds a call of each contender in each round.

    Each is called twice before (what is found, compiled or allocated once is not a step's cost), and each round starts
    with another contender. A contender that takes less than `least` seconds is repeated within its round.
    """
    names = list(contenders)
    for action in contenders.values():
        action()
    times = {name: _times(action, least) for name, action in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(rounds):
            first = k % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(_seconds(contenders[name], times[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: tuple(seconds) for name, seconds in found.items()}
