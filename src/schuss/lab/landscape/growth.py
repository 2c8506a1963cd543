"""What a step of first and of second order costs as the number of weights d grows.

Measured on the chained Rosenbrock function in d variables, as far as time and memory allow; beyond that each
computation is extrapolated from its largest measurement by its own power of d, and says so. The two halves of a
dense step, d products and an eigendecomposition, are extrapolated apart: the first grows as d² and is the longer one
where d is small, so that d³ from there would be far too much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.newton.cost import free_bytes
from schuss.newton.products import hvp, rows

SIZES = (10, 32, 100, 316, 1000, *(10**k for k in range(4, 9)))
"""Finer where a dense step can still be measured, so that its d³ is seen and not guessed from overhead."""

WORD = 8  # bytes of a float64
VECTORS = 3  # of a first-order step: weights, gradient, momentum
PRODUCTS = 32  # vectors of Newton-CG
DENSE = 3  # d × d matrices of a dense step: H, its eigenvectors, workspace
GRAPH = 12  # vectors that a gradient with its graph takes on this function
SHARE = 0.2  # of the free memory that a measurement may take


@dataclass(frozen=True)
class Time:
    """Seconds of one such computation; `measured` here, or extrapolated."""

    seconds: float
    measured: bool


@dataclass(frozen=True)
class Cost:
    """One step over `d` weights: a gradient, a Hessian-vector product, a dense Newton step; and their memory.

    A dense step is the `hessian` (d products) and the `solution` by its eigendecomposition.
    """

    d: int
    gradient: Time
    product: Time
    hessian: Time
    solution: Time

    @property
    def dense(self) -> Time:
        """Of a dense Newton step."""
        parts = (self.hessian, self.solution)
        return Time(sum(part.seconds for part in parts), all(part.measured for part in parts))

    @property
    def first_bytes(self) -> int:
        """Of a first-order step with momentum."""
        return VECTORS * WORD * self.d

    @property
    def product_bytes(self) -> int:
        """Of a step by products."""
        return PRODUCTS * WORD * self.d

    @property
    def dense_bytes(self) -> int:
        """Of a dense Newton step."""
        return DENSE * WORD * self.d**2


def growth(sizes: Sequence[int] = SIZES, patience: float = 3.0) -> list[Cost]:
    """Time a step at each d while it is expected to take no longer than `patience` seconds and its memory is free.

    On one thread. A gradient and a product grow as d, d products as d², an eigendecomposition as d³.
    """
    if not sizes or min(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise refusal("sizes", list(sizes), "growing numbers of at least 2")
    if not patience > 0:
        raise refusal("patience", patience, "more than 0 seconds")
    room = SHARE * free_bytes(torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        columns = [
            _column(sizes, patience, 1, lambda d: GRAPH * WORD * d <= room, _gradient),
            _column(sizes, patience, 1, lambda d: 2 * GRAPH * WORD * d <= room, _product),
            _column(sizes, patience, 2, lambda d: DENSE * WORD * d * d <= room, _hessian),
            _column(sizes, patience, 3, lambda d: DENSE * WORD * d * d <= room, _solution),
        ]
    finally:
        torch.set_num_threads(threads)
    return [Cost(d, *times) for d, *times in zip(sizes, *columns, strict=True)]


def _column(
    sizes: Sequence[int],
    patience: float,
    power: int,
    fits: Callable[[int], bool],
    prepare: Callable[[int], Callable[[], object]],
) -> list[Time]:
    found: list[Time] = []
    base: tuple[int, float] | None = None
    for d in sizes:
        expected = 0.0 if base is None else base[1] * (d / base[0]) ** power
        if base is None or (found[-1].measured and fits(d) and expected <= patience):
            seconds = _timed(prepare(d), patience)
            base = (d, seconds)
            found.append(Time(seconds, True))
        else:
            found.append(Time(expected, False))
    return found


def _timed(do: Callable[[], object], patience: float) -> float:
    """The quickest of at most five, after one that is not timed."""
    do()
    best, began = float("inf"), time.perf_counter()
    for _ in range(5):
        start = time.perf_counter()
        do()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > patience / 5:
            break
    return best


def _slope(d: int, create_graph: bool) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, d, dtype=torch.float64).requires_grad_()
    loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    return x, torch.autograd.grad(loss, x, create_graph=create_graph)[0]


def _gradient(d: int) -> Callable[[], object]:
    return lambda: _slope(d, False)


def _product(d: int) -> Callable[[], object]:
    x, g = _slope(d, True)
    v = torch.ones_like(x)
    return lambda: torch.autograd.grad(g, x, v, retain_graph=True)


def _hessian(d: int) -> Callable[[], object]:
    x, g = _slope(d, True)
    return lambda: rows(lambda v: hvp([g], [x], v), d, x.detach())


def _solution(d: int) -> Callable[[], object]:
    x, g = _slope(d, True)
    slope, matrix = g.detach(), rows(lambda v: hvp([g], [x], v), d, x.detach())

    def solve() -> Tensor:
        values, basis = torch.linalg.eigh(matrix)
        return basis @ ((basis.T @ slope) / values.abs().clamp(min=1e-12))

    return solve
