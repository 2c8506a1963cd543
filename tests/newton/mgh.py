"""The 35 problems of Moré, Garbow & Hillstrom, "Testing unconstrained optimization software", ACM TOMS 7 (1981).

Each is a vector of residuals from its published formula, with the standard start and the published minima of
the sum of their squares (§3 of the paper; the numbers are the paper's). Limits at infinity are minima too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Minimize Σ r(x)² from `start`; `minima` are published values of that sum."""

    name: str
    residual: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    minima: tuple[float, ...]

    def loss(self, x: Tensor) -> Tensor:
        return self.residual(x).square().sum()

    def solved(self, value: float) -> bool:
        """Whether a sum of squares is a published minimum, to the digits published."""
        return any(value - best <= 1e-5 * abs(best) + 1e-10 for best in self.minima)


PROBLEMS: list[Problem] = []


def problem(name: str, start: object, *minima: float):
    def add(residual: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        PROBLEMS.append(Problem(name, residual, tuple(float(v) for v in start), minima))  # type: ignore[attr-defined]
        return residual

    return add


def count(first: int, last: int) -> Tensor:
    return torch.arange(first, last + 1, dtype=torch.float64)


def data(text: str) -> Tensor:
    return torch.tensor([float(v) for v in text.split()], dtype=torch.float64)


@problem("Rosenbrock", (-1.2, 1), 0)
def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


@problem("Freudenstein-Roth", (0.5, -2), 0, 48.9842)
def freudenstein_roth(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


@problem("Powell badly scaled", (0, 1), 0)
def powell_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([1e4 * x[0] * x[1] - 1, torch.exp(-x[0]) + torch.exp(-x[1]) - 1.0001])


@problem("Brown badly scaled", (1, 1), 0)
def brown_badly_scaled(x: Tensor) -> Tensor:
    return torch.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


@problem("Beale", (1, 1), 0)
def beale(x: Tensor) -> Tensor:
    return data("1.5 2.25 2.625") - x[0] * (1 - x[1] ** count(1, 3))


@problem("Jennrich-Sampson", (0.3, 0.4), 124.362)
def jennrich_sampson(x: Tensor) -> Tensor:
    i = count(1, 10)
    return 2 + 2 * i - (torch.exp(i * x[0]) + torch.exp(i * x[1]))


@problem("Helical valley", (-1, 0, 0), 0)
def helical_valley(x: Tensor) -> Tensor:
    turn = torch.atan(x[1] / x[0]) / (2 * math.pi) + torch.where(x[0] < 0, 0.5, 0.0)
    return torch.stack([10 * (x[2] - 10 * turn), 10 * (torch.hypot(x[0], x[1]) - 1), x[2]])


@problem("Bard", (1, 1, 1), 8.21487e-3, 17.4286)
def bard(x: Tensor) -> Tensor:
    y = data("0.14 0.18 0.22 0.25 0.29 0.32 0.35 0.39 0.37 0.58 0.73 0.96 1.34 2.10 4.39")
    u = count(1, 15)
    v = 16 - u
    return y - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2]))


@problem("Gaussian", (0.4, 1, 0), 1.12793e-8)
def gaussian(x: Tensor) -> Tensor:
    half = "0.0009 0.0044 0.0175 0.0540 0.1295 0.2420 0.3521"
    y = data(f"{half} 0.3989 {' '.join(reversed(half.split()))}")
    return x[0] * torch.exp(-x[1] * ((8 - count(1, 15)) / 2 - x[2]) ** 2 / 2) - y


MEYER = data("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872")


@problem("Meyer", (0.02, 4000, 250), 87.9458)
def meyer(x: Tensor) -> Tensor:
    return x[0] * torch.exp(x[1] / (45 + 5 * count(1, 16) + x[2])) - MEYER


@problem("Gulf research", (5, 2.5, 0.15), 0)
def gulf(x: Tensor) -> Tensor:
    t = count(1, 99) / 100
    y = 25 + (-50 * torch.log(t)) ** (2 / 3)
    return torch.exp(-((y - x[1]).abs() ** x[2]) / x[0]) - t


@problem("Box three-dimensional", (0, 10, 20), 0)
def box(x: Tensor) -> Tensor:
    t = count(1, 10) / 10
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10 * t))


@problem("Powell singular", (3, -1, 0, 1), 0)
def powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x
    return torch.stack([a + 10 * b, math.sqrt(5) * (c - d), (b - 2 * c) ** 2, math.sqrt(10) * (a - d) ** 2])


@problem("Wood", (-3, -1, -3, -1), 0)
def wood(x: Tensor) -> Tensor:
    a, b, c, d = x
    ten = math.sqrt(10)
    return torch.stack(
        [10 * (b - a * a), 1 - a, math.sqrt(90) * (d - c * c), 1 - c, ten * (b + d - 2), (b - d) / ten]
    )


KOWALIK_Y = data("0.1957 0.1947 0.1735 0.1600 0.0844 0.0627 0.0456 0.0342 0.0323 0.0235 0.0246")
KOWALIK_U = data("4 2 1 0.5 0.25 0.167 0.125 0.1 0.0833 0.0714 0.0625")


@problem("Kowalik-Osborne", (0.25, 0.39, 0.415, 0.39), 3.07505e-4, 1.02734e-3)
def kowalik_osborne(x: Tensor) -> Tensor:
    u = KOWALIK_U
    return KOWALIK_Y - x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])


@problem("Brown-Dennis", (25, 5, -5, -1), 85822.2)
def brown_dennis(x: Tensor) -> Tensor:
    t = count(1, 20) / 5
    return (x[0] + t * x[1] - torch.exp(t)) ** 2 + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2


OSBORNE_1 = data(
    "0.844 0.908 0.932 0.936 0.925 0.908 0.881 0.850 0.818 0.784 0.751 0.718 0.685 0.658 0.628 0.603 0.580 "
    "0.558 0.538 0.522 0.506 0.490 0.478 0.467 0.457 0.448 0.438 0.431 0.424 0.420 0.414 0.411 0.406"
)


@problem("Osborne 1", (0.5, 1.5, -1, 0.01, 0.02), 5.46489e-5)
def osborne_1(x: Tensor) -> Tensor:
    t = 10 * count(0, 32)
    return OSBORNE_1 - (x[0] + x[1] * torch.exp(-t * x[3]) + x[2] * torch.exp(-t * x[4]))


@problem("Biggs EXP6", (1, 2, 1, 1, 1, 1), 0, 5.65565e-3)
def biggs(x: Tensor) -> Tensor:
    t = count(1, 13) / 10
    y = torch.exp(-t) - 5 * torch.exp(-10 * t) + 3 * torch.exp(-4 * t)
    return x[2] * torch.exp(-t * x[0]) - x[3] * torch.exp(-t * x[1]) + x[5] * torch.exp(-t * x[4]) - y


OSBORNE_2 = data(
    "1.366 1.191 1.112 1.013 0.991 0.885 0.831 0.847 0.786 0.725 0.746 0.679 0.608 0.655 0.616 0.606 0.602 "
    "0.626 0.651 0.724 0.649 0.649 0.694 0.644 0.624 0.661 0.612 0.558 0.533 0.495 0.500 0.423 0.395 0.375 "
    "0.372 0.391 0.396 0.405 0.428 0.429 0.523 0.562 0.607 0.653 0.672 0.708 0.633 0.668 0.645 0.632 0.591 "
    "0.559 0.597 0.625 0.739 0.710 0.729 0.720 0.636 0.581 0.428 0.292 0.162 0.098 0.054"
)


@problem("Osborne 2", (1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5), 4.01377e-2)
def osborne_2(x: Tensor) -> Tensor:
    t = count(0, 64)[:, None] / 10
    bells = x[1:4] * torch.exp(-((t - x[8:11]) ** 2) * x[5:8])
    return OSBORNE_2 - (x[0] * torch.exp(-t[:, 0] * x[4]) + bells.sum(1))


def watson(x: Tensor) -> Tensor:
    n = len(x)
    t = count(1, 29)[:, None] / 29
    j = count(1, n)
    slope = (j[1:] - 1) * x[1:] * t ** (j[1:] - 2)
    value = x * t ** (j - 1)
    return torch.cat([slope.sum(1) - value.sum(1) ** 2 - 1, torch.stack([x[0], x[1] - x[0] ** 2 - 1])])


problem("Watson 6", [0] * 6, 2.28767e-3)(watson)
problem("Watson 9", [0] * 9, 1.39976e-6)(watson)
problem("Watson 12", [0] * 12, 4.72238e-10)(watson)


@problem("Extended Rosenbrock 10", [-1.2, 1] * 5, 0)
def extended_rosenbrock(x: Tensor) -> Tensor:
    return torch.cat([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


@problem("Extended Powell 12", [3, -1, 0, 1] * 3, 0)
def extended_powell(x: Tensor) -> Tensor:
    return torch.cat([powell_singular(block) for block in x.reshape(-1, 4)])


def penalty_1(x: Tensor) -> Tensor:
    return torch.cat([math.sqrt(1e-5) * (x - 1), (x.square().sum() - 0.25)[None]])


problem("Penalty I 4", range(1, 5), 2.24997e-5)(penalty_1)
problem("Penalty I 10", range(1, 11), 7.08765e-5)(penalty_1)


def penalty_2(x: Tensor) -> Tensor:
    n, root = len(x), math.sqrt(1e-5)
    i = count(2, n)
    y = torch.exp(i / 10) + torch.exp((i - 1) / 10)
    e = torch.exp(x / 10)
    weighted = (torch.arange(n, 0, -1, dtype=torch.float64) * x.square()).sum() - 1
    return torch.cat(
        [(x[0] - 0.2)[None], root * (e[1:] + e[:-1] - y), root * (e[1:] - math.exp(-0.1)), weighted[None]]
    )


problem("Penalty II 4", [0.5] * 4, 9.37629e-6)(penalty_2)
problem("Penalty II 10", [0.5] * 10, 2.93660e-4)(penalty_2)


@problem("Variably dimensioned 10", [1 - j / 10 for j in range(1, 11)], 0)
def variably_dimensioned(x: Tensor) -> Tensor:
    total = (count(1, len(x)) * (x - 1)).sum()
    return torch.cat([x - 1, torch.stack([total, total**2])])


@problem("Trigonometric 10", [0.1] * 10, 0, 2.79506e-5)
def trigonometric(x: Tensor) -> Tensor:
    n = len(x)
    return n - torch.cos(x).sum() + count(1, n) * (1 - torch.cos(x)) - torch.sin(x)


@problem("Brown almost-linear 10", [0.5] * 10, 0, 1)
def brown_almost_linear(x: Tensor) -> Tensor:
    return torch.cat([x[:-1] + x.sum() - (len(x) + 1), (x.prod() - 1)[None]])


def _grid(n: int) -> Tensor:
    return count(1, n) / (n + 1)


@problem("Discrete boundary value 10", (_grid(10) * (_grid(10) - 1)).tolist(), 0)
def discrete_boundary_value(x: Tensor) -> Tensor:
    h, ends = 1 / (len(x) + 1), torch.nn.functional.pad(x, (1, 1))
    return 2 * x - ends[:-2] - ends[2:] + h * h * (x + _grid(len(x)) + 1) ** 3 / 2


@problem("Discrete integral equation 10", (_grid(10) * (_grid(10) - 1)).tolist(), 0)
def discrete_integral(x: Tensor) -> Tensor:
    t, h = _grid(len(x)), 1 / (len(x) + 1)
    cube = (x + t + 1) ** 3
    before = torch.cumsum(t * cube, 0)
    after = ((1 - t) * cube).sum() - torch.cumsum((1 - t) * cube, 0)
    return x + h * ((1 - t) * before + t * after) / 2


@problem("Broyden tridiagonal 10", [-1] * 10, 0)
def broyden_tridiagonal(x: Tensor) -> Tensor:
    ends = torch.nn.functional.pad(x, (1, 1))
    return (3 - 2 * x) * x - ends[:-2] - 2 * ends[2:] + 1


@problem("Broyden banded 10", [-1] * 10, 0)
def broyden_banded(x: Tensor) -> Tensor:
    n = len(x)
    near = torch.tensor([[float(i != j and -5 <= j - i <= 1) for j in range(n)] for i in range(n)]).to(x)
    return x * (2 + 5 * x * x) + 1 - near @ (x * (1 + x))


@problem("Linear, full rank", [1] * 5, 15)  # m = 20
def linear_full_rank(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 20 - len(x))) - 2 / 20 * x.sum() - 1


@problem("Linear, rank 1", [1] * 5, 20 * 19 / (2 * 41))
def linear_rank_1(x: Tensor) -> Tensor:
    return count(1, 20) * (count(1, len(x)) * x).sum() - 1


@problem("Linear, rank 1, zero columns and rows", [1] * 5, (400 + 60 - 6) / (2 * 37))
def linear_rank_1_zeros(x: Tensor) -> Tensor:
    inner = (count(2, len(x) - 1) * x[1:-1]).sum()
    return torch.nn.functional.pad(count(1, 18) * inner, (1, 1)) - 1


def chebyquad(x: Tensor) -> Tensor:
    n = len(x)
    z = 2 * x - 1
    before, now, means = torch.ones_like(z), z, []
    for i in range(1, n + 1):
        integral = 0.0 if i % 2 else -1 / (i * i - 1)
        means.append(now.mean() - integral)
        before, now = now, 2 * z * now - before
    return torch.stack(means)


problem("Chebyquad 7", [j / 8 for j in range(1, 8)], 0)(chebyquad)
problem("Chebyquad 8", [j / 9 for j in range(1, 9)], 3.51687e-3)(chebyquad)
problem("Chebyquad 9", [j / 10 for j in range(1, 10)], 0)(chebyquad)
problem("Chebyquad 10", [j / 11 for j in range(1, 11)], 6.50395e-3, 4.77271e-3)(chebyquad)
