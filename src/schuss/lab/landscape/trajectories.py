"""The trajectory of an optimizer on a surface, and the learning rate at which it is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from schuss.errors import refusal
from schuss.lab.entries import Entry
from schuss.lab.landscape.surfaces import Array, Pair, Surface
from schuss.newton import GaussNewton
from schuss.newton.base import CurvatureOptimizer

Slope = Callable[[Tensor, int], Tensor]
"""`slope(w, n)`: the gradient that the optimizer sees at w after n steps, where it is not the surface's own."""

LOST = 1e8
"""A trajectory ends where the value has grown by this factor."""

SEARCHED = tuple(10 ** (k / 4) for k in range(-20, 5))
"""Learning rates from 10⁻⁵ to 10, four per decade."""

SEARCH = (
    f"Each optimizer ran from the start at {len(SEARCHED)} learning rates from 10⁻⁵ to 10, four per decade, "
    "with its other settings as usual. Of the trajectories that stayed in the window (of all, if none did) the best "
    "is shown: the one with the lowest mean logarithm of the height above the lowest value seen."
)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """`points` (n, 2) and the surface's `values` there, at the start and after each step.

    `ended`: "" or why it stopped early. `seen`: a number per step that a demonstration shows, empty otherwise.
    """

    name: str
    settings: str
    points: Array
    values: Array
    ended: str = ""
    seen: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return len(self.values) - 1

    def first_below(self, value: float) -> int | None:
        """The first step at which the value was at most this."""
        below = np.flatnonzero(self.values <= value)
        return int(below[0]) if len(below) else None


def descend(
    surface: Surface,
    build: Callable[[list[Tensor]], Optimizer],
    steps: int,
    *,
    name: str = "",
    settings: str = "",
    start: Pair | None = None,
    slope: Slope | None = None,
    schedule: Callable[[int], float] | None = None,
    watch: Callable[[Optimizer], float] | None = None,
) -> Trajectory:
    """Take so many steps from the start; fewer where the value is no longer finite or has blown up."""
    w = torch.tensor(start or surface.start, dtype=torch.float64, requires_grad=True)
    optimizer = build([w])
    if isinstance(optimizer, GaussNewton):
        advice = "Its value is no sum of squares that one could take apart."
        raise refusal("optimizer", name, "possible on a surface", advice)
    points, seen, ended = [w.detach().numpy().copy()], list[float](), ""
    values = [float(surface.value(w.detach()))]
    for n in range(steps):
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = schedule(n)
        if isinstance(optimizer, CurvatureOptimizer):
            optimizer.step(lambda: surface.value(w))
        else:
            w.grad = torch.autograd.grad(surface.value(w), w)[0] if slope is None else slope(w.detach(), n)
            optimizer.step()
        value = float(surface.value(w.detach()))
        if not math.isfinite(value) or value - values[0] > LOST * max(abs(values[0]), 1.0):
            ended = f"left the surface at step {n + 1}"
            break
        points.append(w.detach().numpy().copy())
        values.append(value)
        if watch is not None:
            seen.append(watch(optimizer))
    return Trajectory(name, settings, np.array(points), np.array(values), ended, np.array(seen))


def at_best(surface: Surface, entry: Entry, steps: int) -> Trajectory:
    """The best trajectory of an entry over the learning rates `SEARCHED`, as `SEARCH` says it.

    A second-order method runs once, with its own full steps.
    """
    if entry.kind == "curvature":
        return at_settings(surface, entry, {}, steps)
    every = [at_settings(surface, entry, {"lr": lr}, steps) for lr in SEARCHED]
    whole = [found for found in every if not found.ended]
    if not whole:
        return every[0]
    inside = [found for found in whole if _is_inside(surface, found)] or whole
    lowest = surface.lowest
    if lowest is None:
        lowest = min(float(found.values.min()) for found in inside)
    return min(inside, key=lambda found: float(np.log10(np.maximum(found.values - lowest, 1e-12)).mean()))


def at_settings(surface: Surface, entry: Entry, parameters: Mapping[str, float], steps: int) -> Trajectory:
    """The trajectory of an entry with its usual settings and these."""
    chosen = {**entry.usual, **parameters}
    words = settings_in_words(entry, chosen)
    return descend(surface, lambda w: entry.build(w, chosen), steps, name=entry.name, settings=words)


def settings_in_words(entry: Entry, parameters: Mapping[str, float]) -> str:
    """An entry's settings as a reader says them.

    >>> from schuss.lab.entries import find
    >>> settings_in_words(find("momentum"), {"lr": 0.1, "1 - momentum": 0.1})
    'lr 0.1, momentum 0.9'
    """
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in entry.arguments(parameters).items()
    )


def _is_inside(surface: Surface, trajectory: Trajectory) -> bool:
    """Whether a trajectory never left the window."""
    left, right, bottom, top = surface.window
    x, y = trajectory.points.T
    return bool(((left <= x) & (x <= right) & (bottom <= y) & (y <= top)).all())
