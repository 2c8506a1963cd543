"""Functions with a known minimum and no data: what an optimizer does, with nothing in the way.

Each seed starts somewhere else. The metric is log₁₀ of how far the value is above the minimum, down to 10⁻¹⁶.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from schuss.errors import real, whole
from schuss.lab.seeds import stable_seed
from schuss.lab.tasks.task import Task

FLOOR = 1e-16

Function = Callable[[Tensor], Tensor]


def quadratic(kappa: float = 1000, dim: int = 50) -> Task:
    """½ wᵀHw with eigenvalues evenly spaced in their logarithm from 1/κ to 1, along directions drawn once."""
    number = "a finite number of at least 1"
    real("kappa", kappa, number, lambda x: 1 <= x < math.inf, "It is the condition number L/μ.")
    whole("dim", dim, 1)
    draw = torch.Generator().manual_seed(stable_seed("quadratic", dim))
    directions = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=draw)).Q
    eigenvalues = torch.logspace(-math.log10(kappa), 0, dim, dtype=torch.float64)
    H = directions * eigenvalues @ directions.T
    return _task(
        f"quadratic-{kappa:g}",
        f"a quadratic in {dim} dimensions with condition number {kappa:g}",
        partial(half_square, (H + H.T) / 2),
        start=[0.0] * dim,
        spread=1.0,
        steps=500,
    )


def rosenbrock() -> Task:
    """(1 − x)² + 100 (y − x²)², from near the classical start (−1.2, 1)."""
    words = "Rosenbrock's curved valley"
    return _task("rosenbrock", words, valley, start=[-1.2, 1.0], spread=0.05, steps=2000)


def saddle() -> Task:
    """½x² − ½y² + ¼y⁴, from close to its saddle at the origin; the minima are at (0, ±1)."""
    words = "leaving a saddle for one of two minima"
    return _task("saddle", words, two_ways_down, start=[1.0, 0.0], spread=1e-3, minimum=-0.25, steps=500)


def half_square(H: Tensor, w: Tensor) -> Tensor:
    """½ wᵀHw."""
    return w @ H.to(w.device) @ w / 2


def valley(w: Tensor) -> Tensor:
    """Rosenbrock's function of (x, y)."""
    x, y = w
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


def two_ways_down(w: Tensor) -> Tensor:
    """½x² − ½y² + ¼y⁴."""
    x, y = w
    return x * x / 2 - y * y / 2 + y**4 / 4


class Point(nn.Module):
    """A point `w`; its weights are its coordinates."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)


def _task(
    name: str,
    description: str,
    value: Function,
    *,
    start: list[float],
    spread: float,
    steps: int,
    minimum: float = 0.0,
) -> Task:
    centre = torch.tensor(start, dtype=torch.float64)
    return Task(
        name=name,
        description=description,
        model=lambda: Point(centre + spread * torch.randn_like(centre)),
        loss=partial(_loss, value),
        metric=partial(_log_gap, value, minimum),
        metric_name="log10 above the minimum",
        batch_size=1,
        steps=steps,
        optimum=minimum,
        decay=False,
    )


def _loss(value: Function, model: Point, batch: None) -> Tensor:
    return value(model.w)


def _log_gap(value: Function, minimum: float, model: Point, batch: None) -> float:
    gap = value(model.w).item() - minimum
    return math.log10(max(gap, FLOOR)) if math.isfinite(gap) else math.nan
