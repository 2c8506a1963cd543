"""Trust regions: the best step of a quadratic model within a radius, and the loop that accepts or rejects it.

Two models know their best step for *every* radius once they are built, so a rejected trial costs one loss
and no new derivative: `SpectralModel` by the eigenvalues of a dense matrix (Moré & Sorensen 1983), and
`KrylovModel` by the path of conjugate gradients (Steihaug 1983; Conn, Gould & Toint 2000, §7.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from schuss.newton.objective import Objective, Point

EPS = torch.finfo(torch.float64).eps
REFINEMENTS = 3


@dataclass(frozen=True)
class Trial:
    """A step, the decrease that gᵀs + ½ sᵀHs predicts for it (as a positive number), and how it came about."""

    step: Tensor
    predicted: float
    length: float
    boundary: bool
    negative_curvature: bool


class SpectralModel:
    """m(s) = gᵀs + ½ sᵀHs in the coordinates where H is diagonal: H = D Q Λ Qᵀ D.

    `values` are Λ (ascending), `basis` Q, `scale` the diagonal of D, `slope` b = Qᵀ D⁻¹ g. Lengths are
    measured as ‖D s‖, so that the region does not depend on the units of the weights. `missing`, if there is one, is an
    accurate −(b + Λy) for a y, by which the free step is refined.
    """

    def __init__(
        self,
        values: Tensor,
        basis: Tensor,
        scale: Tensor,
        slope: Tensor,
        missing: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.values, self.basis, self.scale, self.slope, self.missing = values, basis, scale, slope, missing
        size = float(values.abs().max())
        self.noise = len(values) * EPS * size
        self.rank = int((values.abs() > self.noise).sum())
        self.condition = size / max(float(values.abs().min()), 1e-300)

    @cached_property
    def free(self) -> Tensor | None:
        """The coordinates of the unconstrained minimizer of least length, or None if there is none."""
        flat = self.values <= self.noise
        if bool((self.values < -self.noise).any()):
            return None
        if bool((self.slope[flat].abs() > 1e-8 * self.slope.norm()).any()):
            return None
        stiffness = self.values.clamp(min=self.noise or 1.0)
        y = torch.where(flat, 0.0, -self.slope / stiffness)
        if self.missing is not None:
            for _ in range(REFINEMENTS):
                y = y + torch.where(flat, 0.0, self.missing(y) / stiffness)
        return y

    def possible(self) -> float:
        """The decrease at the unconstrained minimizer; inf where there is none."""
        return math.inf if self.free is None else self._trial(self.free, boundary=False).predicted

    def natural(self) -> float:
        """The length of the Newton step with every curvature taken by its size: a radius to begin with."""
        floor = 1e-3 * float(self.values.abs().max())
        if not floor:  # no curvature at all says nothing of a length
            return 1.0
        return float((self.slope / self.values.abs().clamp(min=floor)).norm()) or 1.0

    def within(self, radius: float) -> Trial:
        """Minimize the model over ‖D s‖ ≤ radius, exactly."""
        if self.free is not None and float(self.free.norm()) <= radius:
            return self._trial(self.free, boundary=False)
        if math.isinf(radius):
            radius = self.natural()
        return self._trial(self._on_sphere(radius), boundary=True)

    def _on_sphere(self, radius: float) -> Tensor:
        """y = −(Λ + μ)⁻¹ b with ‖y‖ = radius, μ ≥ max(0, −λ₁), by Newton's method on 1/‖y‖ − 1/radius."""
        lowest = float(self.values[0])
        floor = max(0.0, -lowest)
        size = float(self.slope.norm())
        bottom = self.values <= lowest + self.noise
        # Hard case: g has nothing along the lowest curvature, so even μ = −λ₁ leaves y inside the sphere.
        shifted = (self.values + floor).clamp(min=0.0)
        inside = torch.where(shifted > self.noise, -self.slope / shifted.clamp(min=self.noise or 1.0), 0.0)
        missing = float(self.slope[bottom].norm())
        if lowest <= self.noise and missing <= 1e-12 * size and float(inside.norm()) < radius:
            rest = math.sqrt(max(radius**2 - float(inside.norm()) ** 2, 0.0))
            inside[0] += math.copysign(rest, -float(self.slope[0]) or 1.0)
            return inside
        low, high = floor, floor + size / radius + self.noise
        mu = max(low + 1e-3 * (high - low), size / radius - float(self.values[-1]))
        y = inside
        for _ in range(100):
            shifted = self.values + mu
            y = -self.slope / shifted.clamp(min=1e-300)
            length = float(y.norm())
            if abs(length - radius) <= 1e-6 * radius or high - low <= 1e-15 * high:
                break
            low, high = (mu, high) if length > radius else (low, mu)
            slope = float((y * y / shifted).sum())
            mu += (length / radius - 1) * length**2 / slope if slope > 0 and math.isfinite(slope) else 0.0
            if not low < mu < high:
                mu = max(math.sqrt(low * high), low + 1e-3 * (high - low))
        return y * (radius / float(y.norm()))

    def _trial(self, y: Tensor, *, boundary: bool) -> Trial:
        bend = float((self.values * y * y).sum())
        predicted = -float(torch.dot(self.slope, y)) - 0.5 * bend
        down = boundary and bool((y[self.values < -self.noise] != 0).any())
        return Trial((self.basis @ y) / self.scale, predicted, float(y.norm()), boundary, down)


@dataclass(frozen=True)
class _Knot:
    z: Tensor
    length: float
    value: float


class KrylovModel:
    """m(s) = gᵀs + ½ sᵀHs by conjugate gradients from s = 0, stopped where H curves down.

    The iterates grow in length and fall in value, and along any chord between two of them the model is
    m_a − Δ (2t − t²), with Δ the fall between them: so up to `knots` iterates are stored, and the step within any
    smaller radius is found on the chords without another product. After the last iterate comes a ray, where
    the curvature was negative. `asymmetry` is the largest |dᵀHe − eᵀHd| of two directions that followed each other,
    relative to what random vectors would make of a matrix of that size.

    >>> H = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> KrylovModel(torch.tensor([1.0, 2.0], dtype=torch.float64), lambda v: H @ v, 1e-12, 10).within(1e9).step
    tensor([-1., -1.], dtype=torch.float64)
    """

    def __init__(
        self,
        gradient: Tensor,
        product: Callable[[Tensor], Tensor],
        tolerance: float,
        limit: int,
        *,
        radius: float = math.inf,
        knots: int = 20,
    ) -> None:
        self.gradient, self.rank = gradient, len(gradient)
        z, residual = torch.zeros_like(gradient), gradient.clone()
        direction = -residual
        squared = start = _dot(residual, residual)
        self.path = [_Knot(z, 0.0, 0.0)]
        self.ray: tuple[Tensor, float, float] | None = None
        self.products, self.why = 0, "the residual of the Newton equation is small enough"
        self.asymmetry, last = 0.0, None
        for _ in range(limit):
            if squared <= tolerance**2 * start or squared == 0:
                break
            bent = product(direction)
            self.products += 1
            curvature, size = _dot(direction, bent), _dot(direction, direction)
            if not math.isfinite(curvature):
                self.why = "a Hessian-vector product was not finite"
                break
            if last is not None:
                self.asymmetry = max(self.asymmetry, _asymmetry(last, (direction, bent)))
            last = direction, bent
            if curvature <= EPS * size * math.sqrt(_dot(bent, bent) / size):
                self.ray = (direction, -squared, curvature)
                self.why = "negative curvature"
                break
            alpha = squared / curvature
            z = z + alpha * direction
            residual = residual + alpha * bent
            self.path.append(_Knot(z, math.sqrt(_dot(z, z)), self.path[-1].value - 0.5 * alpha * squared))
            if len(self.path) > knots + 1:
                self.path = [*self.path[:-1:2], self.path[-1]]
            if self.path[-1].length >= radius:
                self.why = "the boundary of the trust region"
                break
            squared, previous = _dot(residual, residual), squared
            direction = (squared / previous) * direction - residual
        else:
            self.why = f"{limit} matrix-vector products"

    def possible(self) -> float:
        """The decrease at the last iterate: a lower bound where the path was cut, or not solved to the end."""
        return math.inf if self.ray is not None else -self.path[-1].value

    def natural(self) -> float:
        """A first radius where there is only a ray: as far as the same curvature, positive, would have gone."""
        assert self.ray is not None
        direction, slope, curvature = self.ray
        size = math.sqrt(_dot(direction, direction))
        reach = -slope / max(abs(curvature), 1e-300) * size
        return self.path[-1].length + (reach if math.isfinite(reach) and curvature else 1.0)

    def within(self, radius: float) -> Trial:
        """Follow the path up to the radius."""
        if math.isinf(radius) and self.ray is not None:
            radius = self.natural()
        for a, b in zip(self.path, self.path[1:], strict=False):
            if b.length > radius:
                t = _reach(a.z, b.z - a.z, radius)
                value = a.value - (a.value - b.value) * (2 * t - t * t)
                return Trial(a.z + t * (b.z - a.z), -value, radius, True, False)
        last = self.path[-1]
        if self.ray is None:
            return Trial(last.z, -last.value, last.length, False, False)
        direction, slope, curvature = self.ray
        t = _reach(last.z, direction, radius)
        value = last.value + t * slope + 0.5 * t * t * curvature
        return Trial(last.z + t * direction, -value, radius, True, True)


def forcing(size: float, previous: float | None, eta: float) -> float:
    """How exactly to solve a Newton equation, as ‖H s + g‖/‖g‖: loose far away, tight near the end.

    `size` is ‖g‖, `previous` the one a step before and `eta` the answer then (Eisenstat & Walker 1996, choice 2,
    with their safeguard).

    >>> forcing(1.0, 4.0, 0.1)
    0.05625
    """
    if not previous:
        return eta
    wanted = 0.9 * (size / previous) ** 2
    if 0.9 * eta**2 > 0.1:
        wanted = max(wanted, 0.9 * eta**2)
    return min(max(wanted, 1e-10), 0.5)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b))


def _asymmetry(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """|vᵀHu − uᵀHv| of (u, Hu) and (v, Hv), where random vectors have |uᵀHv| of about |u| |Hv| / √n."""
    (u, hu), (v, hv) = one, other
    size = math.sqrt(_dot(u, u) * _dot(hv, hv)) + math.sqrt(_dot(v, v) * _dot(hu, hu))
    return abs(_dot(v, hu) - _dot(u, hv)) * math.sqrt(len(u)) / size if size else 0.0


def _reach(start: Tensor, direction: Tensor, radius: float) -> float:
    """The t ≥ 0 with ‖start + t direction‖ = radius, by the root formula that does not cancel."""
    a, b = _dot(direction, direction), _dot(start, direction)
    c = max(radius**2 - _dot(start, start), 0.0)
    root = math.sqrt(b * b + a * c)
    return c / (b + root) if b > 0 else (root - b) / a


Model = SpectralModel | KrylovModel


def descend(
    objective: Objective,
    start: Point,
    model: Model,
    radius: float,
    *,
    lr: float = 1.0,
    fraction: float = 1e-4,
    exact: bool = True,
    max_trials: int = 40,
) -> tuple[Point, dict[str, Any]]:
    """Try the model's step, and shorter ones while the loss disagrees; widen the region where it agrees.

    Returns the point where the step ended, `start` if every trial was rejected, and what its report says of it.

    A trial is accepted when the loss falls by at least this fraction of the predicted decrease. Where that is too
    small a part of the loss to be seen through rounding, the fall is taken from the slopes at both ends,
    −½ (g₀ + g₁)ᵀs, whose rounding is smaller by far. An `exact` model's good step says how far to try next, be it
    nearer; the step of an inexact one may be short for other reasons and only widens the region.
    """
    slope = objective.gradient(start)
    broken, first_predicted, first_radius = 0, 0.0, radius
    possible = lr * (2 - lr) * model.possible()

    def ended(
        words: str, trials: int, point: Point = start, trial: Trial | None = None
    ) -> tuple[Point, dict[str, Any]]:
        if trial is None and broken:
            words += f"; {broken} of {trials} losses were not finite"
        if model.rank < len(slope):
            words += f" (singular, rank {model.rank} of {len(slope)}: the shortest such step)"
        # Losses that are no numbers say nothing about how far the model holds.
        region = first_radius if trial is None and broken == trials else radius
        return point, {
            "predicted": trial.predicted if trial else 0.0,
            "first_predicted": first_predicted,
            "possible": possible,
            "trials": trials,
            "radius": region,
            "negative_curvature": bool(trial and trial.negative_curvature),
            "stopped": words,
        }

    for trials in range(1, max_trials + 1):
        trial = model.within(radius)
        if lr != 1.0:
            trial = _shortened(trial, slope, lr)
        first_predicted = first_predicted or trial.predicted
        if not trial.predicted > 0 or not bool(torch.isfinite(trial.step).all()):
            stationary = "the gradient is zero and no curvature of the model is negative"
            return ended("the model predicts no decrease" if bool(slope.any()) else stationary, trials - 1)
        point = objective.at(start.x + trial.step)
        if torch.equal(point.x, start.x):
            return ended("the step is below the rounding of the weights", trials - 1)
        length = trial.length / lr
        if not math.isfinite(point.loss):
            broken += 1
            radius = 0.1 * length
            continue
        actual, faint = start.loss - point.loss, objective.faint(start)
        if trial.predicted <= faint and abs(actual) <= faint:
            actual = -0.5 * float(torch.dot(slope + objective.gradient(point), trial.step))
        radius = _next_radius(radius, length, trial, actual, slope, exact)
        if actual / trial.predicted >= fraction:
            return ended(_kind(trial), trials, point, trial)
    return ended("no trial lowered the loss", max_trials)


def _next_radius(
    radius: float, length: float, trial: Trial, actual: float, slope: Tensor, exact: bool
) -> float:
    """How far to try next, after a trial of this length has lowered the loss by `actual`."""
    ratio = actual / trial.predicted
    if ratio < 0.25:
        # The parabola through both losses and the slope says where along the step its minimum lies.
        along = float(torch.dot(slope, trial.step))
        bend = -actual - along
        guess = -along / (2 * bend) if bend > 0 else 0.5
        return min(max(guess, 0.1), 0.5) * length
    if ratio >= 0.75:
        return 2 * length if exact else max(radius, 2 * length)
    return length if math.isinf(radius) and trial.boundary else radius


def _kind(trial: Trial) -> str:
    """Where an accepted step ended, in words."""
    if trial.negative_curvature:
        return "negative curvature followed"
    return "the boundary of the trust region" if trial.boundary else "the model's minimum"


def _shortened(trial: Trial, slope: Tensor, lr: float) -> Trial:
    along = float(torch.dot(slope, trial.step))
    bend = 2 * (-trial.predicted - along)
    predicted = -(lr * along + 0.5 * lr * lr * bend)
    return replace(trial, step=lr * trial.step, predicted=predicted, length=lr * trial.length)
