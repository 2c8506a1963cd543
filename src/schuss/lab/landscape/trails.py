"""The trajectory of an optimizer on a surface, and the learning rate at which it is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from schuss.errors import refusal
from schuss.lab.entries import Entry
from schuss.lab.landscape.surfaces import Pair, Surface
from schuss.newton import GaussNewton
from schuss.newton.base import CurvatureOptimizer

Array = NDArray[np.float64]
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
class Trail:
    """A trajectory: `places` (n, 2) and the surface's `values` there, after the steps `at` (every one, if not given).

    `ended`: "" or why it stopped early. `seen`: a number per step that a demonstration shows, empty otherwise.
    """

    name: str
    settings: str
    places: Array
    values: Array
    ended: str = ""
    seen: Array = field(default_factory=lambda: np.zeros(0))
    at: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        """Number the places, where nothing else was said."""
        if not len(self.at):
            object.__setattr__(self, "at", np.arange(len(self.values)))

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return int(self.at[-1])

    def first_below(self, value: float) -> int | None:
        """The first step at which the value was at most this."""
        below = np.flatnonzero(self.values <= value)
        return int(self.at[below[0]]) if len(below) else None


def walk(
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
) -> Trail:
    """Take so many steps from the start; fewer where the value is no longer finite or has blown up."""
    w = torch.tensor(start or surface.start, dtype=torch.float64, requires_grad=True)
    optimizer = build([w])
    if isinstance(optimizer, GaussNewton):
        raise refusal(
            "optimizer",
            name,
            "possible on a surface",
            "Its value is no sum of squares that one could take apart.",
        )
    places, values, seen, ended = [w.detach().numpy().copy()], [_value(surface, w)], list[float](), ""
    for n in range(steps):
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = schedule(n)
        if isinstance(optimizer, CurvatureOptimizer):
            optimizer.step(lambda: surface.value(w))
        elif slope is None:
            (w.grad,) = torch.autograd.grad(surface.value(w), w)
        else:
            w.grad = slope(w.detach(), n)
        if not isinstance(optimizer, CurvatureOptimizer):
            optimizer.step()
        value = _value(surface, w)
        if not math.isfinite(value) or value - values[0] > LOST * max(abs(values[0]), 1.0):
            ended = f"left the surface at step {n + 1}"
            break
        places.append(w.detach().numpy().copy())
        values.append(value)
        if watch is not None:
            seen.append(watch(optimizer))
    return Trail(name, settings, np.array(places), np.array(values), ended, np.array(seen))


def tuned(surface: Surface, entry: Entry, steps: int) -> Trail:
    """The best walk of an entry up the ladder of learning rates, as `SEARCH` says it.

    A method that steps by curvature walks once, with its own full steps.
    """
    if entry.kind == "curvature":
        return given(surface, entry, {}, steps)
    trails: list[Trail] = []
    for lr in SEARCHED:
        trail = given(surface, entry, {"lr": lr}, steps)
        if not trail.ended:
            trails.append(trail)
    if not trails:
        return given(surface, entry, {"lr": SEARCHED[0]}, steps)
    trails = [trail for trail in trails if _inside(surface, trail)] or trails
    lowest = surface.lowest
    if lowest is None:
        lowest = min(float(trail.values.min()) for trail in trails)
    return min(trails, key=lambda trail: float(np.log10(np.maximum(trail.values - lowest, 1e-12)).mean()))


def given(surface: Surface, entry: Entry, parameters: Mapping[str, float], steps: int) -> Trail:
    """The walk of an entry with its usual settings and these."""
    chosen = {**entry.usual, **parameters}
    return walk(
        surface,
        lambda w: entry.build(w, chosen),
        steps,
        name=entry.name,
        settings=said(entry, chosen),
    )


def said(entry: Entry, parameters: Mapping[str, float]) -> str:
    """An entry's settings as a reader says them.

    >>> from schuss.lab.entries import find
    >>> said(find("momentum"), {"lr": 0.1, "1 - momentum": 0.1})
    'lr 0.1, momentum 0.9'
    """
    arguments = entry.arguments(parameters)
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in arguments.items()
    )


def _inside(surface: Surface, trail: Trail) -> bool:
    """Whether a walk never left the window."""
    left, right, bottom, top = surface.window
    x, y = trail.places.T
    return bool(((left <= x) & (x <= right) & (bottom <= y) & (y <= top)).all())


def _value(surface: Surface, w: Tensor) -> float:
    with torch.no_grad():
        return float(surface.value(w))
