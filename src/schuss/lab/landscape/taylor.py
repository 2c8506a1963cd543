"""The quadratic Taylor model at a point of a surface, and the steps that it proposes.

m(s) = f + gᵀs + ½ sᵀHs is the parabola that agrees with the surface at the point in value, slope and curvature.
Newton's step goes to where its slope vanishes; the trust region says how far it is believed.

Source: Nocedal & Wright, "Numerical Optimization" (2006), chapters 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schuss.errors import refusal
from schuss.lab.landscape.surfaces import Pair, Surface, heights_on, value_at
from schuss.newton.region import SpectralModel

Array = NDArray[np.float64]

GRID = 101
BELIEVED = 0.25  # share of the promised fall that must come for a radius to be trusted
HALVINGS = 30


@dataclass(frozen=True)
class Step:
    """A step from the point: where it ends, the fall that the model promises and the one that comes.

    `fits`: whether it stays in the trust region. A negative fall is a rise.
    """

    name: str
    formula: str
    end: Pair
    length: float
    predicted: float
    actual: float
    fits: bool


@dataclass(frozen=True, eq=False)
class TaylorModel:
    """The model at `at`: `value`, `gradient` (2,), `hessian` (2, 2) with its `eigenvalues`, ascending.

    `heights` are the surface on the grid `ys` × `xs`, `modelled` the model there. `radius`: how far the model is
    believed, by `how`. `cut`: along each step, the share of it taken, the surface and the model.
    """

    surface: Surface
    at: Pair
    value: float
    gradient: Pair
    hessian: tuple[Pair, Pair]
    eigenvalues: Pair
    radius: float
    how: str
    steps: tuple[Step, ...]
    xs: Array
    ys: Array
    heights: Array
    modelled: Array
    lowest: float
    cut: tuple[Array, Array, Array]

    @property
    def shape(self) -> str:
        """What kind of parabola it is."""
        low, high = self.eigenvalues
        tiny = 1e-10 * max(abs(low), abs(high))
        if low > tiny:
            return "a bowl"
        if high < -tiny:
            return "a dome"
        return "a saddle" if low < -tiny and high > tiny else "a trough"

    @property
    def found(self) -> str:
        """What was measured, in words."""
        low, high = self.eigenvalues
        words = f"The parabola is {self.shape}: its curvatures are {low:.4g} and {high:.4g}. ".replace(
            "-", "−"
        )
        newton = next((step for step in self.steps if step.name == "Newton"), None)
        if newton is None:
            words += "Its gradient does not vanish at a single point, so there is no full Newton step. "
        elif self.shape != "a bowl":
            words += (
                f"The full Newton step goes to the parabola's stationary point, which is no minimum: the surface "
                f"{'rises' if newton.actual < 0 else 'falls'} by {abs(newton.actual):.3g}. "
            )
        else:
            words += (
                f"For Newton's step the model predicts a decrease of {newton.predicted:.4g}; "
                f"{'a decrease' if newton.actual >= 0 else 'an increase'} of {abs(newton.actual):.4g} was measured. "
            )
        first = next(step for step in self.steps if step.name == "gradient")
        return words + f"The model's best step along the gradient decreases it by {first.actual:.4g}."


def taylor_model(surface: Surface, at: Pair | None = None, radius: float | None = None) -> TaylorModel:
    """The model at a point (the surface's start if not given), exact by automatic differentiation.

    `radius`: of the trust region; if not given, the longest of L, L/2, L/4, ... at which the surface falls by at
    least a quarter of what the model promises, L the length of the Newton step with every curvature taken by
    its size.

    >>> from schuss.lab.landscape import surface
    >>> model = taylor_model(surface("rosenbrock"), (-1.2, 1.0))
    >>> [round(float(x), 4) for x in model.steps[1].end]
    [-1.1753, 1.3807]
    """
    if radius is not None and not 0 < radius < float("inf"):
        raise refusal("radius", radius, "a finite number greater than 0")
    point = _Point(surface, at or surface.start)
    radius, how = point.trusted() if radius is None else (radius, f"given as {radius:g}")
    proposed = point.proposed(radius)
    steps = tuple(point.judged(name, formula, s, radius) for name, formula, s in proposed)
    xs, ys = _window(point.place, radius, steps)
    modelled = point.on(xs, ys)
    if not np.isfinite(modelled).all():
        raise refusal("radius", radius, "small enough to draw", "The model is not finite at its edge.")
    heights = heights_on(surface, xs, ys)
    shares = np.linspace(0.0, 1.25, 76)
    moves = [[t * s for t in shares.tolist()] for _, _, s in proposed]
    (a, b), ((p, q), (_, r)) = point.g.tolist(), point.H.tolist()
    return TaylorModel(
        surface=surface,
        at=point.place,
        value=point.value,
        gradient=(a, b),
        hessian=((p, q), (q, r)),
        eigenvalues=(float(point.values[0]), float(point.values[1])),
        radius=radius,
        how=how,
        steps=steps,
        xs=xs,
        ys=ys,
        heights=heights,
        modelled=modelled,
        lowest=float(heights[np.isfinite(heights)].min()) if surface.lowest is None else surface.lowest,
        cut=(
            shares,
            np.array([[point.value - point.fall(s) for s in along] for along in moves]),
            np.array([[point.value - point.promise(s) for s in along] for along in moves]),
        ),
    )


class _Point:
    """A point of a surface with its value, gradient g and Hessian H, and what the model there says of a step."""

    def __init__(self, surface: Surface, place: Pair) -> None:
        self.surface, self.place, self.value = surface, place, value_at(surface, place)
        w = torch.tensor(place, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(surface.value(w), w)
        self.w, self.g = w.detach(), slope.detach()
        hessian = torch.autograd.functional.hessian(surface.value, self.w)
        assert isinstance(hessian, Tensor)
        self.H = 0.5 * (hessian + hessian.T)
        if not bool(torch.isfinite(self.g).all() and torch.isfinite(self.H).all()):
            what = f"the derivatives of {surface.name} at {place}"
            raise refusal(what, self.g.tolist(), "finite", "Try another --at.")
        self.size = float(self.g.norm())
        if self.size == 0.0:
            raise refusal(
                f"the slope of {surface.name} at {place}",
                0.0,
                "different from 0",
                "The gradient step and Newton's have no length there: try another --at.",
            )
        self.values, self.basis = torch.linalg.eigh(self.H)
        self.model = SpectralModel(
            self.values, self.basis, torch.ones(2, dtype=torch.float64), self.basis.T @ self.g
        )

    def fall(self, s: Tensor) -> float:
        """By how much the surface falls along a step."""
        with torch.no_grad():
            return self.value - float(self.surface.value(self.w + s))

    def promise(self, s: Tensor) -> float:
        """By how much the model says that it falls."""
        return -float(self.g @ s) - 0.5 * float(s @ self.H @ s)

    def trusted(self) -> tuple[float, str]:
        """The trust-region radius, and how it was found."""
        radius, tried = self.model.natural(), 0
        while tried < HALVINGS:
            trial = self.model.within(radius).step
            if self.fall(trial) >= BELIEVED * self.promise(trial):
                break
            radius, tried = radius / 2, tried + 1
        if tried:
            return (
                radius,
                f"the Newton step's length, halved {tried} times until the surface fell by a quarter of the predicted "
                "decrease",
            )
        return (
            radius,
            "the Newton step's length; the surface falls by at least a quarter of the predicted decrease",
        )

    def proposed(self, radius: float) -> list[tuple[str, str, Tensor]]:
        """The steps that the model proposes: name, formula, change."""
        bend = float(self.g @ self.H @ self.g) / self.size**2
        along = min(self.size / bend, radius) if bend > 0 else radius
        found = [
            ("gradient", "−α g, α the best for the model inside the region", -along / self.size * self.g)
        ]
        if bool((self.values.abs() > self.model.noise).all()):
            found.append(("Newton", "−H⁻¹ g", -(self.basis @ ((self.basis.T @ self.g) / self.values))))
        lowest = self.model.within(radius).step
        return [*found, ("trust region", "lowest point of the model inside the region", lowest)]

    def judged(self, name: str, formula: str, s: Tensor, radius: float) -> Step:
        """A proposed step beside what comes of it."""
        end, length = (self.place[0] + float(s[0]), self.place[1] + float(s[1])), float(s.norm())
        fits = length <= radius * (1 + 1e-9)
        return Step(name, formula, end, length, self.promise(s), self.fall(s), fits)

    def on(self, xs: Array, ys: Array) -> Array:
        """The model's heights on a grid."""
        X, Y = np.meshgrid(xs - self.place[0], ys - self.place[1])
        (a, b), ((p, q), (_, r)) = self.g.tolist(), self.H.tolist()
        with np.errstate(over="ignore", invalid="ignore"):
            return self.value + a * X + b * Y + 0.5 * (p * X * X + 2 * q * X * Y + r * Y * Y)


def _window(place: Pair, radius: float, steps: Sequence[Step]) -> tuple[Array, Array]:
    """A square that holds the point, its region and every step."""
    ends = np.array([place, *(step.end for step in steps)])
    low = np.minimum(ends.min(axis=0), np.array(place) - radius)
    high = np.maximum(ends.max(axis=0), np.array(place) + radius)
    middle, half = (low + high) / 2, 0.6 * float((high - low).max())
    return tuple(np.linspace(c - half, c + half, GRID) for c in middle)  # type: ignore[return-value]


def drawn(model: TaylorModel) -> dict[str, Any]:
    """The model as its page draws it."""
    angle = np.linspace(0, 2 * np.pi, 121)
    shares, real, promised = model.cut
    return {
        "at": model.at,
        "xs": model.xs,
        "ys": model.ys,
        "heights": model.heights,
        "modelled": model.modelled,
        "lowest": model.lowest,
        "circle": [model.at[0] + model.radius * np.cos(angle), model.at[1] + model.radius * np.sin(angle)],
        "steps": [{"name": step.name, "end": step.end, "length": step.length} for step in model.steps],
        "shares": shares,
        "real": real,
        "promised": promised,
        "minima": model.surface.minima,
    }
