"""The nearest orthogonal matrix, by matrix products alone: polynomials that drive every singular value to 1.

With A = X Xᵀ one iteration is X ← a X + (b A + c A²) X, which maps each singular value σ to a σ + b σ³ + c σ⁵ and
leaves the singular vectors as they are. At first X is divided by its Frobenius norm, so that no σ is above 1. The
products are the library's: NumPy's BLAS, or `torch.baddbmm` over a stack of matrices of one shape.

Wide matrices (or tall ones, turned) take the Gram form: with Q = a I + b A + c A² all iterations run on the small
square matrices, A ← Q A Q and R ← Q R, and X is multiplied once by R; and once in the middle, where it starts anew, so
that what rounding did to A is not multiplied further.

Source: Björck and Bowie 1971, "An iterative algorithm for computing the best estimate of an orthogonal matrix". The
polynomials are in `schuss.rules.polynomials`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from schuss.errors import refusal
from schuss.rules.polynomials import POLYNOMIALS, Polynomials
from schuss.rules.rule import Rule

__all__ = [
    "POLYNOMIALS",
    "Polynomials",
    "matrix_shape",
    "orthogonal",
    "polynomials",
    "range_of",
    "slot_shape",
    "words",
]

# Matrices at least so many times wider than tall take the Gram form.
WIDE = 2


def polynomials(name: str, steps: int | None = None) -> Polynomials:
    """A set of coefficients by name; with `steps`, so many of its iterations, the last one repeated."""
    if name not in POLYNOMIALS:
        raise refusal("polynomials", name, "one of " + ", ".join(map(repr, POLYNOMIALS)))
    found = POLYNOMIALS[name]
    return found if steps is None else (found + found[-1:] * steps)[:steps]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """A weight of this shape as a matrix: its first axis, and all others together."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def slot_shape(shape: Sequence[int], kind: str | None) -> tuple[int, ...]:
    """The shape of a slot with a number for each element, or each "row" or "column", of a weight of this shape.

    >>> slot_shape((2, 3, 4), "row"), slot_shape((2, 3, 4), "column")
    ((2, 3, 1), (2, 1, 4))
    """
    if kind == "row":
        return (*shape[:-1], 1)
    return (*shape[:-2], 1, shape[-1]) if kind == "column" else tuple(shape)


def words(rule: Rule, shape: Sequence[int]) -> dict[str, Any]:
    """The words of matrices for one whole weight of this shape, over NumPy's arrays or torch's."""
    rows, columns = matrix_shape(shape)

    def of_matrix(x: Any) -> Any:
        whole = x.full_tensor() if hasattr(x, "full_tensor") else x
        found = orthogonal(whole.reshape(rows, columns), rule.iterations, rule.smallest_norm).reshape(shape)
        return found if whole is x else _divided_like(x, found)

    return {"orthogonal": of_matrix, "rows": lambda x: float(rows), "columns": lambda x: float(columns)}


def _divided_like(given: Any, whole: Any) -> Any:
    """What every rank has worked out as a whole, divided between them as a DTensor is: each keeps its part."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * given.device_mesh.ndim
    replicated = DTensor.from_local(whole, given.device_mesh, everywhere, run_check=False)
    return replicated.redistribute(placements=given.placements)


def range_of(iterations: Polynomials, low: float) -> tuple[float, float]:
    """The least and the largest that singular values from `low` to 1 become.

    >>> tuple(round(x, 4) for x in range_of(POLYNOMIALS["quintic"], 1e-3))
    (0.4705, 1.2024)
    """
    x = np.concatenate([np.geomspace(low, 1, 200_001), np.linspace(low, 1, 200_001)])
    for a, b, c in iterations:
        x = a * x + b * x**3 + c * x**5
    return float(x.min()), float(x.max())


def orthogonal(matrices: Any, iterations: Polynomials, eps: float = 1e-7) -> Any:
    """Matrices (..., rows, columns), NumPy's or torch's, with their singular values near 1; new ones of the same dtype.

    A matrix whose norm is below `eps` is divided by `eps`. Rows and columns are turned so that products are small.
    An empty one is returned as it is.
    """
    if 0 in matrices.shape:
        return matrices
    library = _NumPy if isinstance(matrices, np.ndarray) else _Torch
    with np.errstate(all="ignore"):  # an infinite gradient makes NaN, as everywhere
        return _driven(matrices, iterations, eps, library)


def _driven(matrices: Any, iterations: Polynomials, eps: float, library: Any) -> Any:
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = library.unit(matrices.mT if tall else matrices, eps)
    if x.shape[-1] >= WIDE * x.shape[-2]:
        half = (len(iterations) + 1) // 2
        for some in (iterations[:half], iterations[half:]):
            x = _gram(x, some, library)
    else:
        for a, b, c in iterations:
            gram = x @ x.mT
            x = library.affine(a, x, 1.0, library.affine(b, gram, c, gram, gram), x)
    return x.mT if tall else x


def _gram(x: Any, iterations: Polynomials, library: Any) -> Any:
    gram, product = x @ x.mT, None
    for k, (a, b, c) in enumerate(iterations):
        q = library.plus_identity(a, library.affine(b, gram, c, gram, gram))
        product = q if product is None else q @ product
        if k + 1 < len(iterations):
            gram = q @ gram @ q
    return x if product is None else product @ x


class _NumPy:
    """What the iteration needs of NumPy."""

    @staticmethod
    def unit(x: Any, eps: float) -> Any:
        """x over its norm; over `eps` if that is larger. In units of the largest number, whose square may overflow."""
        most = np.abs(x).max((-2, -1), keepdims=True)
        x = x / np.where(most == 0, 1, most)
        norm = most * np.sqrt((x * x).sum((-2, -1), keepdims=True))
        return x * (most / np.maximum(norm, x.dtype.type(eps)))

    @staticmethod
    def affine(a: float, x: Any, b: float, y: Any, z: Any) -> Any:
        """a x + b y z."""
        found = y @ z
        found *= b
        found += a * x
        return found

    @staticmethod
    def plus_identity(a: float, x: Any) -> Any:
        return x + a * np.eye(x.shape[-1], dtype=x.dtype)


class _Torch:
    """What the iteration needs of torch."""

    @staticmethod
    def unit(x: Any, eps: float) -> Any:
        most = x.abs().amax((-2, -1), keepdim=True)
        x = x / most.where(most != 0, 1)
        norm = most * (x * x).sum((-2, -1), keepdim=True).sqrt()
        return x * (most / norm.clamp(min=eps))

    @staticmethod
    def affine(a: float, x: Any, b: float, y: Any, z: Any) -> Any:
        """a x + b y z."""
        import torch

        multiplied: Callable[..., Any] = torch.baddbmm if x.dim() == 3 else torch.addmm
        return multiplied(x, y, z, beta=a, alpha=b)

    @staticmethod
    def plus_identity(a: float, x: Any) -> Any:
        import torch

        return x + a * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
