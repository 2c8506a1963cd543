"""What a step of first and of second order costs as the number of weights d grows.

Measured on the chained Rosenbrock function in d variables, as far as time and memory allow; beyond that each
computation is extrapolated by its own power of d, and says so. The two halves of a dense step, d Hessian-vector
products and an eigendecomposition, are extrapolated apart: the first grows as d² and is the longer one where d is
small, so that d³ from there would be far too much.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.lab.training.quiet import quiet_process
from schuss.newton.cost import free_bytes
from schuss.newton.products import hvp, rows

SIZES = (10, 32, 100, 316, 1000, *(10**k for k in range(4, 9)))
"""Finer where a dense step can still be measured, so that its d³ is seen and not guessed from overhead."""

WORD = 8  # bytes of a float64
Work = Callable[[], object]
FRACTION = 0.2  # of the free memory that a measurement may take


@dataclass(frozen=True)
class Time:
    """Seconds of one such computation; `measured` here, or extrapolated."""

    seconds: float
    measured: bool


@dataclass(frozen=True)
class Cost:
    """One step over `d` weights: a gradient, a Hessian-vector product, and the two halves of a dense Newton step.

    Those are the `hessian` (d products) and the `solution` by its eigendecomposition.
    """

    d: int
    gradient: Time
    product: Time
    hessian: Time
    solution: Time

    @property
    def dense(self) -> Time:
        """A dense Newton step."""
        parts = (self.hessian, self.solution)
        return Time(sum(part.seconds for part in parts), all(part.measured for part in parts))

    @property
    def memory(self) -> tuple[int, int, int]:
        """Bytes of a first-order step with momentum (3 vectors), of Newton-CG (32) and of a dense step (3 matrices)."""
        return 3 * WORD * self.d, 32 * WORD * self.d, 3 * WORD * self.d**2


def growth(sizes: Sequence[int] = SIZES, patience: float = 3.0) -> list[Cost]:
    """Time a step at each d while it is expected to take no longer than `patience` seconds and its memory is free.

    On one thread. A gradient and a product grow as d, d products as d², an eigendecomposition as d³.
    """
    if not sizes or min(sizes) < 2 or list(sizes) != sorted(set(sizes)):
        raise refusal("sizes", list(sizes), "growing numbers of at least 2")
    if not patience > 0:
        raise refusal("patience", patience, "more than 0 seconds")
    free = FRACTION * free_bytes(torch.device("cpu")) / WORD

    def column(power: int, numbers: Callable[[int], int], prepare: Callable[[int], Work]) -> list[Time]:
        found: list[Time] = []
        for k, d in enumerate(sizes):
            expected = found[-1].seconds * (d / sizes[k - 1]) ** power if found else 0.0
            measured = not found or (found[-1].measured and numbers(d) <= free and expected <= patience)
            found.append(Time(_timed(prepare(d), patience) if measured else expected, measured))
        return found

    with quiet_process():
        columns = (
            column(1, lambda d: 12 * d, _gradient),  # numbers that a gradient with its graph takes
            column(1, lambda d: 24 * d, _product),
            column(2, lambda d: 3 * d * d, _hessian),
            column(3, lambda d: 3 * d * d, _solution),
        )
    return [Cost(d, *times) for d, *times in zip(sizes, *columns, strict=True)]


def _timed(work: Work, patience: float) -> float:
    """The quickest of five, or of one where that is slow, after one that warms up."""
    slow = timeit.timeit(work, number=1) > patience / 25
    return min(timeit.repeat(work, number=1, repeat=1 if slow else 5))


def _slope(d: int, create_graph: bool = True) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, d, dtype=torch.float64).requires_grad_()
    loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
    return x, torch.autograd.grad(loss, x, create_graph=create_graph)[0]


def _gradient(d: int) -> Work:
    return lambda: _slope(d, create_graph=False)


def _product(d: int) -> Work:
    x, g = _slope(d)
    v = torch.ones_like(x)
    return lambda: torch.autograd.grad(g, x, v, retain_graph=True)


def _hessian(d: int) -> Work:
    x, g = _slope(d)
    return lambda: rows(lambda v: hvp([g], [x], v), d, x.detach())


def _solution(d: int) -> Work:
    g, matrix = _slope(d)[1].detach(), _hessian(d)()
    assert isinstance(matrix, Tensor)

    def solve() -> Tensor:
        values, basis = torch.linalg.eigh(matrix)
        return basis @ ((basis.T @ g) / values.abs().clamp(min=1e-12))

    return solve
