"""Functions of two numbers with known minima, and the user's own.

Sources: Rosenbrock 1960; Himmelblau 1972; Beale 1958; Moré, Garbow and Hillstrom 1981.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schuss.errors import refusal, unknown
from schuss.lab.files import load_name
from schuss.lab.names import divide, is_own
from schuss.lab.tasks.functions import two_ways_down, valley

Pair = tuple[float, float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Surface:
    """A function of two numbers, where to start on it and which window of it to draw.

    `value(w)`: w of shape (2,), a scalar tensor back. `minima`: known ones, may be none. `lowest`: the value
    there, or None. `window`: x from, x to, y from, y to.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    start: Pair
    window: tuple[float, float, float, float]
    minima: tuple[Pair, ...] = ()
    lowest: float | None = None
    formula: str = ""

    def __post_init__(self) -> None:
        """Refuse an empty window, and a start that is no point."""
        left, right, bottom, top = self.window
        if not (left < right and bottom < top and all(map(math.isfinite, self.window))):
            raise refusal("window", self.window, "x from < x to, y from < y to")
        if not all(map(math.isfinite, self.start)):
            raise refusal("start", self.start, "two finite numbers")


def himmelblau(w: Tensor) -> Tensor:
    """(x² + y − 11)² + (x + y² − 7)²: four minima of equal depth, four saddles, one maximum."""
    x, y = w
    return (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2


def beale(w: Tensor) -> Tensor:
    """(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²: flat arms, steep corners."""
    x, y = w
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def quadratic(kappa: float = 100.0) -> Surface:
    """½ (x² + κ y²)."""
    if not 1 <= kappa < math.inf:
        raise refusal("kappa", kappa, "a finite number of at least 1", "It is the condition number L/μ.")
    eigenvalues = torch.tensor([1.0, kappa], dtype=torch.float64)
    reach = min(2.5 / math.sqrt(kappa), 1.2)
    return Surface(
        f"quadratic:kappa={kappa:g}",
        lambda w: (eigenvalues * w * w).sum() / 2,
        start=(-1.0, 1.0 / math.sqrt(kappa)),
        window=(-1.2, 0.6, -reach, reach),
        minima=((0.0, 0.0),),
        lowest=0.0,
        formula=f"½ (x² + {kappa:g} y²)",
    )


SURFACES: dict[str, Surface] = {
    "rosenbrock": Surface(
        "rosenbrock",
        valley,
        start=(-1.2, 1.0),
        window=(-1.8, 1.6, -0.6, 2.2),
        minima=((1.0, 1.0),),
        lowest=0.0,
        formula="(1 − x)² + 100 (y − x²)²",
    ),
    "himmelblau": Surface(
        "himmelblau",
        himmelblau,
        start=(-0.5, -1.0),
        window=(-5.0, 5.0, -5.0, 5.0),
        minima=((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)),
        lowest=0.0,
        formula="(x² + y − 11)² + (x + y² − 7)²",
    ),
    "saddle": Surface(
        "saddle",
        two_ways_down,
        start=(1.0, 1e-3),
        window=(-1.4, 1.4, -1.5, 1.5),
        minima=((0.0, 1.0), (0.0, -1.0)),
        lowest=-0.25,
        formula="½ x² − ½ y² + ¼ y⁴",
    ),
    "beale": Surface(
        "beale",
        beale,
        start=(1.0, 1.5),
        window=(-0.5, 4.5, -1.5, 2.0),
        minima=((3.0, 0.5),),
        lowest=0.0,
        formula="(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²",
    ),
    "quadratic": quadratic(),
}


def surface(spec: str, start: Pair | None = None, window: tuple[float, ...] | None = None) -> Surface:
    """The surface that a spec names: "beale", "quadratic:kappa=100", "file.py:function".

    A function of your own takes a tensor of two numbers and returns a scalar tensor; its attributes `start`
    (two numbers) and `window` (four) are used where nothing else is said; else it starts at (1, 1) and shows
    three times as far as the start lies from 0, at least 3.

    >>> surface("quadratic:kappa=100").start
    (-1.0, 0.1)
    """
    if window is not None and len(window) != 4:
        raise refusal("window", window, "four numbers", "x from, x to, y from, y to.")
    found = _own(spec, start, window) if is_own(spec) and divide(spec)[1] else _named(spec)
    if start is not None:
        found = replace(found, start=start)
    if window is not None:
        found = replace(found, window=(window[0], window[1], window[2], window[3]))
    value_at(found, found.start)
    return found


def value_at(surface: Surface, point: Pair) -> float:
    """The function at a point; refused where it does not give a finite number with a gradient."""
    w = torch.tensor(point, dtype=torch.float64, requires_grad=True)
    try:
        value: Any = surface.value(w)
    except Exception as error:
        raise ValueError(
            f"{surface.name} cannot be evaluated at {point}: {type(error).__name__}: {error}. It gets one tensor "
            "of two numbers: begin with `x, y = w`."
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        advice = "Compute it from w with torch's operations."
        raise refusal(f"{surface.name}(w)", value, "a scalar tensor with a gradient", advice)
    if not math.isfinite(value.item()):
        raise refusal(f"{surface.name} at {point}", value.item(), "finite", "Try another point.")
    return value.item()


def heights_on(surface: Surface, xs: Array, ys: Array) -> Array:
    """The values on a grid, ys × xs; all at once where the function can be mapped over points, else one by one."""
    X, Y = np.meshgrid(xs, ys)
    points = torch.from_numpy(np.stack([X.ravel(), Y.ravel()], axis=1))
    with torch.no_grad():
        try:
            found = torch.func.vmap(surface.value)(points)
        except Exception:
            found = torch.stack([surface.value(point).reshape(()) for point in points])
    heights = found.double().reshape(X.shape).numpy()
    if not np.isfinite(heights).any():
        what = f"the window of {surface.name}"
        raise refusal(what, surface.window, "a point where it is finite", "Try another --window.")
    return heights


def _named(spec: str) -> Surface:
    name, _, settings = spec.partition(":")
    if name not in SURFACES:
        raise unknown("surface", spec, SURFACES, "Your own function: FILE.py:function.")
    if not settings:
        return SURFACES[name]
    if name != "quadratic":
        raise refusal(name, settings, "understood; it takes nothing")
    key, _, kappa = settings.partition("=")
    try:
        found = float(kappa) if key == "kappa" else None
    except ValueError:
        found = None
    if found is None:
        raise refusal(name, settings, "understood; it takes kappa=number")
    return quadratic(found)


def _own(spec: str, start: Pair | None, window: tuple[float, ...] | None) -> Surface:
    function: Any = load_name(*divide(spec))[0]
    if not callable(function):
        raise refusal("surface", spec, "a function of a tensor of two numbers")
    begin = start or getattr(function, "start", (1.0, 1.0))
    reach = 3 * max(1.0, *map(abs, begin))
    frame = window or getattr(function, "window", None) or (-reach, reach, -reach, reach)
    if len(begin) != 2 or len(frame) != 4:
        raise refusal(spec, (begin, frame), "a start of two numbers and a window of four")
    x, y = map(float, begin)
    left, right, bottom, top = map(float, frame)
    value = cast("Callable[[Tensor], Tensor]", function)
    return Surface(spec, value, (x, y), (left, right, bottom, top))
