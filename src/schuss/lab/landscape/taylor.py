"""The quadratic Taylor model at a point of a surface, and the steps that it proposes.

m(s) = f + gᵀs + ½ sᵀHs is the parabola that agrees with the surface at the point in value, slope and curvature.
Newton's step goes to where its slope vanishes; the trust region says how far the model is trusted.

Source: Nocedal & Wright, "Numerical Optimization" (2006), chapters 3 and 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.lab.landscape.surfaces import Array, Pair, Surface, heights_on, value_at
from schuss.newton.region import SpectralModel

GRID = 101
TRUSTED = 0.25  # fraction of the predicted decrease that must come for a radius to be trusted
HALVINGS = 30


@dataclass(frozen=True)
class Step:
    """A step from the point: where it ends, the decrease that the model predicts and the one that comes.

    `fits`: whether it stays in the trust region. A negative decrease is a rise.
    """

    name: str
    formula: str
    end: Pair
    length: float
    predicted: float
    actual: float
    fits: bool


class TaylorModel:
    """The model at a point (the surface's start if not given), exact by automatic differentiation.

    `radius`: of the trust region; if not given, the longest of L, L/2, L/4, ... at which the surface falls by at
    least a quarter of what the model predicts, L the length of the Newton step with every curvature taken by
    its size; `how` says so.

    `value`, `gradient` (2,) and `hessian` (2, 2) with its `eigenvalues`, ascending, are those at the point `at`;
    `heights` the surface on the grid `ys` × `xs`, `modelled` the model there. `cut`: the fractions of each step,
    and along it the surface and the model.

    >>> from schuss.lab.landscape import surface
    >>> model = TaylorModel(surface("rosenbrock"), (-1.2, 1.0))
    >>> [round(float(x), 4) for x in model.steps[1].end]
    [-1.1753, 1.3807]
    """

    def __init__(self, surface: Surface, at: Pair | None = None, radius: float | None = None) -> None:
        if radius is not None and not 0 < radius < math.inf:
            raise refusal("radius", radius, "a finite number greater than 0")
        self.surface, self.at = surface, at or surface.start
        self.value = value_at(surface, self.at)
        self._differentiate()
        if radius is None:
            self.radius, self.how = self._trusted()
        else:
            self.radius, self.how = radius, f"given as {radius:g}"
        proposed = self._proposed()
        self.steps = tuple(self._judged(*each) for each in proposed)
        self.xs, self.ys = self._window()
        self.modelled = self._on(self.xs, self.ys)
        if not np.isfinite(self.modelled).all():
            advice = "The model is not finite at its edge."
            raise refusal("radius", self.radius, "small enough to draw", advice)
        self.heights = heights_on(surface, self.xs, self.ys)
        known = surface.lowest
        self.lowest = float(self.heights[np.isfinite(self.heights)].min()) if known is None else known
        fractions = np.linspace(0.0, 1.25, 76)
        moves = [[t * s for t in fractions.tolist()] for _, _, s in proposed]
        self.cut = (
            fractions,
            np.array([[self.value - self._fall(s) for s in along] for along in moves]),
            np.array([[self.value - self._predicted(s) for s in along] for along in moves]),
        )

    def _differentiate(self) -> None:
        """Take gradient and Hessian, and refuse a point from which no step leads."""
        name = self.surface.name
        self._w = torch.tensor(self.at, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(self.surface.value(self._w), self._w)
        self._w, self._g = self._w.detach(), slope.detach()
        hessian = torch.autograd.functional.hessian(self.surface.value, self._w)
        assert isinstance(hessian, Tensor)
        self._H = 0.5 * (hessian + hessian.T)
        if not bool(torch.isfinite(self._g).all() and torch.isfinite(self._H).all()):
            what = f"the derivatives of {name} at {self.at}"
            raise refusal(what, self._g.tolist(), "finite", "Try another --at.")
        if float(self._g.norm()) == 0.0:
            advice = "The gradient step and Newton's have no length there: try another --at."
            raise refusal(f"the slope of {name} at {self.at}", 0.0, "different from 0", advice)
        values, self._basis = torch.linalg.eigh(self._H)
        self._spectral = SpectralModel(values, self._basis, torch.ones_like(values), self._basis.T @ self._g)
        self.gradient: list[float] = self._g.tolist()
        self.hessian: list[list[float]] = self._H.tolist()
        self.eigenvalues: list[float] = values.tolist()

    def _fall(self, s: Tensor) -> float:
        """By how much the surface falls along a step."""
        return self.value - float(self.surface.value(self._w + s))

    def _predicted(self, s: Tensor) -> float:
        """By how much the model says that it falls."""
        return -float(self._g @ s) - 0.5 * float(s @ self._H @ s)

    def _trusted(self) -> tuple[float, str]:
        """The trust-region radius, and how it was found."""
        radius, halved = self._spectral.natural(), 0
        while halved < HALVINGS:
            step = self._spectral.within(radius).step
            if self._fall(step) >= TRUSTED * self._predicted(step):
                break
            radius, halved = radius / 2, halved + 1
        found = (
            f", halved {halved} times until the surface fell by"
            if halved
            else "; the surface falls by at least"
        )
        return radius, f"the Newton step's length{found} a quarter of the predicted decrease"

    def _proposed(self) -> list[tuple[str, str, Tensor]]:
        """The steps that the model proposes: name, formula, change."""
        g, H, values, size = self._g, self._H, self._spectral.values, float(self._g.norm())
        bend = float(g @ H @ g) / size**2
        along = min(size / bend, self.radius) if bend > 0 else self.radius
        found = [("gradient", "−α g, α the best for the model inside the region", -along / size * g)]
        if bool((values.abs() > self._spectral.noise).all()):
            found.append(("Newton", "−H⁻¹ g", -(self._basis @ ((self._basis.T @ g) / values))))
        lowest = self._spectral.within(self.radius).step
        return [*found, ("trust region", "lowest point of the model inside the region", lowest)]

    def _judged(self, name: str, formula: str, s: Tensor) -> Step:
        """A proposed step with what comes of it."""
        end, length = (self.at[0] + float(s[0]), self.at[1] + float(s[1])), float(s.norm())
        fits = length <= self.radius * (1 + 1e-9)
        return Step(name, formula, end, length, self._predicted(s), self._fall(s), fits)

    def _window(self) -> tuple[Array, Array]:
        """A square that holds the point, its region and every step."""
        point = np.array(self.at)
        ends = np.array([self.at, *(step.end for step in self.steps)])
        low = np.minimum(ends.min(axis=0), point - self.radius)
        high = np.maximum(ends.max(axis=0), point + self.radius)
        middle, half = (low + high) / 2, 0.6 * float((high - low).max())
        xs, ys = (np.linspace(c - half, c + half, GRID) for c in middle)
        return xs, ys

    def _on(self, xs: Array, ys: Array) -> Array:
        """The model's heights on a grid."""
        X, Y = np.meshgrid(xs - self.at[0], ys - self.at[1])
        (a, b), ((p, q), (_, r)) = self.gradient, self.hessian
        with np.errstate(over="ignore", invalid="ignore"):
            return self.value + a * X + b * Y + 0.5 * (p * X * X + 2 * q * X * Y + r * Y * Y)

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
        low, high = (f"{x:.4g}".replace("-", "−") for x in self.eigenvalues)
        words = f"The parabola is {self.shape}: its curvatures are {low} and {high}. "
        steps = {step.name: step for step in self.steps}
        newton = steps.get("Newton")
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
        return (
            words
            + f"The model's best step along the gradient decreases it by {steps['gradient'].actual:.4g}."
        )

    def plain(self) -> dict[str, Any]:
        """The model as its report draws it."""
        angle = np.linspace(0, 2 * np.pi, 121)
        fractions, actual, predicted = self.cut
        circle = [self.at[0] + self.radius * np.cos(angle), self.at[1] + self.radius * np.sin(angle)]
        keys = ("at", "xs", "ys", "heights", "modelled", "lowest")
        return {key: getattr(self, key) for key in keys} | {
            "circle": circle,
            "steps": [vars(step) for step in self.steps],
            "fractions": fractions,
            "actual": actual,
            "predicted": predicted,
            "minima": self.surface.minima,
        }
