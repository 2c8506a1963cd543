"""Both ends of the Hessian's spectrum, and the condition number, by the method of lanczos.py.

Power iteration is not used: it returns the largest |λ|, −3 for diag(1, −3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schuss.curvature.lanczos import Apply, Array, Ritz, eigh, is_symmetric, lanczos
from schuss.curvature.memory import DEFAULT_VECTORS, SPARE, claim, default_rows
from schuss.curvature.objective import Loss, Model, Objective, Progress, objective
from schuss.curvature.products import Curvature
from schuss.errors import real, refusal, whole

DENSE = 2000
"""Up to this many weights the condition number forms the whole matrix."""

LARGE = 100_000
"""Beyond so many weights 100 products are all there is by default, and a residual of 1e-2 counts as converged."""


@dataclass(frozen=True, eq=False)
class Extremes:
    """Both ends of a spectrum.

    `largest` is descending, `smallest` ascending, each eigenvalue as often as it occurs; units: loss per
    weight². `residuals` are ‖H y − λ y‖ for unit y, in the order of `largest` then `smallest`: an eigenvalue
    lies within that distance of each value. Every value lies inside the spectrum: the true kth largest is
    never below the one reported, the true kth smallest never above. `converged`: all residuals ≤ `tolerance`
    × the largest |λ|. `confirmed`: it was made sure that no copy of a repeated eigenvalue is missing; where
    that is False such copies may be listed once. `products` were spent at the loss `loss` in `n` weights.
    `largest_vectors` and `smallest_vectors` (k × n, rows of unit length) only if asked for.
    """

    largest: Array
    smallest: Array
    residuals: Array
    converged: bool
    products: int
    confirmed: bool
    n: int
    tolerance: float
    matrix: str
    loss: float
    largest_vectors: Tensor | None = None
    smallest_vectors: Tensor | None = None

    def __repr__(self) -> str:
        """A line for each end."""
        state = "converged" if self.converged else "NOT converged"
        copies = "" if self.confirmed else ", copies not confirmed"
        return (
            f"{self.matrix} of {self.n:,} weights, {self.products} matrix-vector products, {state}{copies} (worst "
            f"residual {self.residuals.max():.1e})\n"
            f"  largest  {_listed(self.largest)}\n"
            f"  smallest {_listed(self.smallest)}"
        )


def extreme_eigenvalues(
    model: Model,
    loss: Loss,
    batch: Any,
    k: int = 5,
    *,
    matrix: str = "hessian",
    eigenvectors: bool = False,
    tolerance: float | None = None,
    products: int | None = None,
    vectors: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Extremes:
    """The k largest and k smallest eigenvalues of the Hessian of the loss, with multiplicity.

    Args:
        model: an `nn.Module`, or the point of a plain function (a tensor, a list or dict of tensors).
        loss: `loss(model, batch)`, a scalar tensor.
        batch: handed to `loss`; `Pieces([...])` for one that does not fit at once.
        k: how many at each end.
        matrix: "hessian", or "ggn" for the Gauss-Newton matrix.
        eigenvectors: also return the directions.
        tolerance: residual, relative to the largest |λ|, at which a value counts as converged; the error of an isolated
            value is of the order of its square. Default 1e-10 for float64 weights, 100 ε of float32 otherwise, and
            1e-2 beyond 100,000 weights: at the edge of a bulk 100 products cannot tell eigenvalues 1e-3 apart.
        products: at most so many Hessian-vector products; default 100 for large models, more for small ones
            (10⁷/n). Those left over search for copies of repeated eigenvalues (see `confirmed`).
        vectors: at most so many vectors of the model's size in memory. Default 24, what fits in 16 MiB, or 2 k + 9,
            whichever is most.
        seed: of the random start; the global random state is not touched.
        progress: called as `progress(done, at_most)` as products are taken.

    Raises:
        ValueError: as `hvp`; also if the loss changes between two calls, saying why it may.
        MemoryError: before the memory is taken, naming it.

    >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    >>> rosenbrock = lambda x, _: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> extreme_eigenvalues(x, rosenbrock, None, k=1)
    hessian of 2 weights, 2 matrix-vector products, converged (worst residual 2.2e-12)
      largest  1001.6
      smallest 0.399361
    """
    k = whole("k", k, 1)
    with objective(model, loss, batch) as f:
        value = f.steady()
        options: dict[str, Any] = dict(budget=products, vectors=vectors, seed=seed, progress=progress)
        ritz, goal = ends(f, Curvature(f, matrix), k, k, tolerance=tolerance, **options)
        if tolerance is None:
            tolerance = goal if f.n <= LARGE else max(goal, 1e-2)
        k = min(k, f.n)
        high, low = list(range(len(ritz.values)))[: -k - 1 : -1], list(range(k))
        residuals = ritz.residuals[high + low]
        return Extremes(
            largest=ritz.values[high],
            smallest=ritz.values[low],
            residuals=residuals,
            converged=bool((residuals <= tolerance * np.abs(ritz.values).max()).all()),
            products=ritz.products,
            confirmed=ritz.confirmed,
            n=f.n,
            tolerance=tolerance,
            matrix=matrix,
            loss=value,
            largest_vectors=ritz.vectors(high) if eigenvectors else None,
            smallest_vectors=ritz.vectors(low) if eigenvectors else None,
        )


def ends(
    f: Objective,
    apply: Apply,
    low: int,
    high: int,
    *,
    tolerance: float | None = None,
    budget: int | None = None,
    vectors: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Ritz, float]:
    """The ends of an operator's spectrum, in memory chosen and named; also the tolerance aimed at."""
    if tolerance is not None:
        real("tolerance", tolerance, "a finite number ≥ 0", lambda x: 0 <= x < math.inf)
    if budget is not None:
        budget = whole("products", budget, 1)
    n = f.n
    low, high = min(low, n), min(high, n)
    most = max(low, high)
    least = low + high + 4
    if vectors is not None and vectors < least + SPARE:
        allowed = f"at least {least + SPARE}"
        raise refusal("vectors", vectors, allowed, "Ask for fewer eigenvalues or more memory.")
    rows = max(default_rows(n, f.dtype.itemsize), least) if vectors is None else vectors - SPARE
    block = most if n <= LARGE and rows - low - high >= 5 * most else 1
    rows = min(rows, n + block)
    tolerance = max(1e-10, 100 * f.eps) if tolerance is None else tolerance
    advice = f"Ask for fewer, or set vectors= below {max(rows + SPARE, DEFAULT_VECTORS)}."
    f.claim(f"a basis for {low + high} eigenvalues", rows + SPARE, advice)
    ritz = lanczos(
        apply,
        f.zeros(rows),
        block=block,
        low=low,
        high=high,
        tolerance=tolerance,
        budget=max(100, min(2 * n, 10**7 // n)) if budget is None else budget,
        generator=torch.Generator(f.device).manual_seed(seed),
        progress=progress,
    )
    return ritz, tolerance


@dataclass(frozen=True, eq=False)
class ConditionNumber:
    """κ of the positive part of a spectrum: `largest` / `smallest`, the smallest eigenvalue above `cut`.

    `zeros` eigenvalues lie in [−cut, cut] and `negative` below; None where only the ends of the spectrum are
    known. `how` says in words how the positive part was found. `converged`: the two eigenvalues are within
    tolerance; otherwise `value` is a lower bound.
    """

    value: float
    largest: float
    smallest: float
    cut: float
    zeros: int | None
    negative: int | None
    converged: bool
    how: str

    def __float__(self) -> float:
        """The number itself."""
        return self.value

    def __repr__(self) -> str:
        """The number, and how it was cut."""
        bound = "" if self.converged else "at least "
        return f"κ = {bound}{self.value:.6g} = {self.largest:.6g} / {self.smallest:.6g} ({self.how})"


def condition_number(
    model: Model,
    loss: Loss,
    batch: Any,
    *,
    matrix: str = "hessian",
    cut: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ConditionNumber:
    """κ = λmax / λmin of the positive part of the Hessian, its condition number.

    The positive part are the eigenvalues above `cut` × λmax; `cut` defaults to n ε of the weights' dtype (at
    least 1e-12), the size of rounding. Up to 2000 weights the whole matrix is formed, and the number is
    exact. Beyond, both ends come from Lanczos: if the smallest is above the cut, that is κ; if not, the number is a
    lower bound: λmax over an upper bound of the smallest positive eigenvalue that was seen (θ plus its residual,
    where that is below θ/2).

    Arguments and errors are those of `extreme_eigenvalues`; besides, no eigenvalue above the cut is refused.

    >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    >>> rosenbrock = lambda x, _: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> condition_number(x, rosenbrock, None)
    κ = 2508.01 = 1001.6 / 0.399361 (all 2 eigenvalues, cut at 1e-12 of the largest: 0 near zero, 0 negative)
    """
    if cut is not None and not 0 <= cut < 1:
        raise refusal("cut", cut, "in [0, 1)", "It is relative to the largest eigenvalue.")
    with objective(model, loss, batch) as f:
        f.steady()
        curvature = Curvature(f, matrix)
        cut = max(1e-12, f.n * f.eps) if cut is None else cut
        if f.n <= DENSE:
            full = dense(f, curvature, progress)
            (values, _), residuals = eigh(full), np.zeros(f.n)
            converged = is_symmetric(float(np.abs(full - full.T).max() / (np.abs(full).max() or 1.0)))
            how = f"all {f.n} eigenvalues"
        else:
            ritz, _ = ends(f, curvature, 1, 1, seed=seed, progress=progress)
            values, residuals, converged = ritz.values, ritz.residuals, ritz.converged
            how = f"ends by {ritz.products} matrix-vector products"
    largest = float(values[-1])
    if largest <= 0:
        raise refusal("the largest eigenvalue", largest, "positive", "There is no positive part here.")
    zero, how = cut * largest, f"{how}, cut at {cut:.3g} of the largest"
    sure = (values > zero) & (residuals < values / 2)
    smallest = float(values[0] if converged and values[0] > zero else (values + residuals)[sure].min())
    zeros = negative = None
    if f.n <= DENSE:
        zeros, negative = int((np.abs(values) <= zero).sum()), int((values < -zero).sum())
        how += f": {zeros} near zero, {negative} negative"
    elif not converged or values[0] <= zero:
        converged, how = False, f"{how}; the smallest eigenvalue of all is {values[0]:.3g}"
    return ConditionNumber(largest / smallest, largest, smallest, zero, zeros, negative, converged, how)


def dense(f: Objective, apply: Apply, progress: Progress | None = None) -> Array:
    """The whole matrix by n products with the unit vectors."""
    n = f.n
    claim("the whole matrix", n, n, torch.float64, f.device, "Measure its ends with extreme_eigenvalues.")
    matrix = np.empty((n, n))
    for i in range(n):
        unit = f.zeros(1)
        unit[0, i] = 1
        matrix[i] = apply(unit)[0].cpu().numpy()
        if progress is not None:
            progress(i + 1, n)
    return matrix


def _listed(values: Array) -> str:
    return "  ".join(f"{value:.6g}" for value in values)
