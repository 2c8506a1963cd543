"""One picture: a piece of ground, the trails on it, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schuss.lab.entries import Entry
from schuss.lab.landscape.surfaces import Surface, heights_on
from schuss.lab.landscape.trails import SEARCH, Trail, given, tuned

Array = NDArray[np.float64]

GRID = 151  # fine enough for the floor of a curved valley
SCALED = 4.0  # longest over shorter side of a window up to which x and y are drawn to one scale


@dataclass(frozen=True, eq=False)
class Scene:
    """What a section of the page shows.

    `heights` (ys × xs) are the values on the grid, `lowest` what they are drawn above on a logarithmic scale.
    `lede` says what to look for, `found` what was measured, `how` where the settings came from. `watched`
    names what the trails' `seen` are, `watching` says it in a sentence; they are drawn on a `logarithmic` axis or
    not. `axes` name the two directions. `marks`: (x, y, text) written into the picture, `marked` what they are.
    `facts`: (what, value) beside the picture.
    """

    id: str
    title: str
    lede: str
    found: str
    how: str
    xs: Array
    ys: Array
    heights: Array
    lowest: float
    trails: tuple[Trail, ...]
    minima: tuple[tuple[float, float], ...] = ()
    watched: str = ""
    watching: str = ""
    logarithmic: bool = False
    marks: tuple[tuple[float, float, str], ...] = ()
    marked: str = ""
    axes: tuple[str, str] = ("x", "y")
    unit: str = "height above the lowest"
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def to_scale(self) -> bool:
        """Whether x and y are drawn to one scale, so that a gradient stands square on the lines of equal height."""
        wide, high = self.xs[-1] - self.xs[0], self.ys[-1] - self.ys[0]
        return bool(1 / SCALED <= high / wide <= SCALED)

    def plain(self) -> dict[str, Any]:
        """The scene as the page draws it."""
        keys = ("xs", "ys", "lowest", "minima", "watched", "logarithmic", "marks", "axes", "unit", "to_scale")
        trails = [
            {"name": t.name, "places": t.places, "values": t.values, "seen": t.seen, "at": t.at}
            for t in self.trails
        ]
        # Six digits are more than a picture shows, and a third of the file.
        heights = [[float(f"{z:.6g}") for z in row] for row in self.heights]
        return {key: getattr(self, key) for key in keys} | {"heights": heights, "trails": trails}


def on_surface(surface: Surface, entries: list[Entry], steps: int, lr: float | None = None) -> Scene:
    """The trails of some optimizers on a surface, at a given learning rate or each at its best."""
    if lr is None:
        trails, how = tuple(tuned(surface, entry, steps) for entry in entries), SEARCH
    else:
        trails = tuple(given(surface, entry, {"lr": lr}, steps) for entry in entries)
        how = f"Every optimizer at the given learning rate {lr:g}, its other settings as usual."
    best = min(trails, key=lambda trail: float(np.nanmin(trail.values)))
    lost = [trail.name for trail in trails if trail.ended]
    found = f"Lowest after {steps} steps: {best.name}, {best.values.min():.3g}."
    if lost:
        found += f" Left the surface: {', '.join(lost)}."
    start = "({:g}, {:g})".format(*surface.start).replace("-", "−")
    return ground(
        surface,
        trails,
        id="walk",
        title=surface.name,
        lede=f"{surface.formula}{', from' if surface.formula else 'From'} {start}, {steps} steps.",
        found=found,
        how=how,
    )


def ground(surface: Surface, trails: tuple[Trail, ...], **words: Any) -> Scene:
    """The scene of a surface's window."""
    left, right, bottom, top = surface.window
    xs, ys = np.linspace(left, right, GRID), np.linspace(bottom, top, GRID)
    values = heights_on(surface, xs, ys)
    lowest = surface.lowest
    if lowest is None:
        lowest = float(min(values[np.isfinite(values)].min(), *(trail.values.min() for trail in trails)))
    return Scene(xs=xs, ys=ys, heights=values, lowest=lowest, trails=trails, minima=surface.minima, **words)
