"""One picture: a function's contours, the trajectories on them, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from schuss.lab.entries import Entry
from schuss.lab.landscape.surfaces import Array, Surface, heights_on
from schuss.lab.landscape.trajectories import SEARCH, Trajectory, at_best, at_settings

GRID = 151  # fine enough for the floor of a curved valley
SCALED = 4.0  # longest over shorter side of a window up to which x and y are drawn to one scale


@dataclass(frozen=True, eq=False)
class Picture:
    """What a section of the report shows.

    `heights` (ys × xs) are the values on the grid, `lowest` what they are drawn above on a logarithmic scale.
    `lede` says what to watch for, `found` what was measured, `how` where the settings came from. `watched`
    names what the trajectories' `seen` are, `watching` says it in a sentence; they are drawn on a `logarithmic` axis
    or not. `marks`: (x, y, text) written into the picture, `marked` what they are.
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
    trajectories: tuple[Trajectory, ...]
    minima: tuple[tuple[float, float], ...] = ()
    watched: str = ""
    watching: str = ""
    logarithmic: bool = False
    marks: tuple[tuple[float, float, str], ...] = ()
    marked: str = ""

    @property
    def to_scale(self) -> bool:
        """Whether x and y are drawn to one scale, so that a gradient stands square on the lines of equal height."""
        wide, high = self.xs[-1] - self.xs[0], self.ys[-1] - self.ys[0]
        return bool(1 / SCALED <= high / wide <= SCALED)

    def plain(self) -> dict[str, Any]:
        """The picture as the report draws it."""
        keys = ("xs", "ys", "lowest", "minima", "watched", "logarithmic", "marks", "to_scale")
        # Six digits are more than a picture shows, and a third of the file.
        heights = [[float(f"{z:.6g}") for z in row] for row in self.heights]
        trajectories = [vars(each) for each in self.trajectories]
        return {key: getattr(self, key) for key in keys} | {"heights": heights, "trajectories": trajectories}


def on_surface(surface: Surface, entries: list[Entry], steps: int, lr: float | None = None) -> Picture:
    """The trajectories of some optimizers on a surface, at a given learning rate or each at its best."""
    if lr is None:
        found, how = tuple(at_best(surface, entry, steps) for entry in entries), SEARCH
    else:
        found = tuple(at_settings(surface, entry, {"lr": lr}, steps) for entry in entries)
        how = f"Every optimizer at the given learning rate {lr:g}, its other settings as usual."
    best = min(found, key=lambda each: float(np.nanmin(each.values)))
    words = f"Lowest after {steps} steps: {best.name}, {best.values.min():.3g}."
    if lost := [each.name for each in found if each.ended]:
        words += f" Left the surface: {', '.join(lost)}."
    start = "({:g}, {:g})".format(*surface.start).replace("-", "−")
    return picture(
        surface,
        found,
        id="trajectories",
        title=surface.name,
        lede=f"{surface.formula}{', from' if surface.formula else 'From'} {start}, {steps} steps.",
        found=words,
        how=how,
    )


def picture(surface: Surface, trajectories: tuple[Trajectory, ...], **words: Any) -> Picture:
    """The picture of trajectories in a surface's window."""
    left, right, bottom, top = surface.window
    xs, ys = np.linspace(left, right, GRID), np.linspace(bottom, top, GRID)
    heights = heights_on(surface, xs, ys)
    lowest = surface.lowest
    if lowest is None:
        lowest = float(min(heights[np.isfinite(heights)].min(), *(t.values.min() for t in trajectories)))
    return Picture(
        xs=xs,
        ys=ys,
        heights=heights,
        lowest=lowest,
        trajectories=trajectories,
        minima=surface.minima,
        **words,
    )
