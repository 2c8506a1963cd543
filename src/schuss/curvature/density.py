"""The whole spectrum as a density, by stochastic Lanczos quadrature.

A random unit vector sees the spectrum through weights (yᵢ · start)² at its Ritz values; averaged over vectors
that is the density of eigenvalues. The scatter between vectors is the error bar.

Sources: Golub and Meurant 1994; Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019 (networks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from schuss.curvature.lanczos import Array, Krylov, is_symmetric
from schuss.curvature.memory import SPARE, default_rows
from schuss.curvature.objective import Loss, Model, Progress, objective
from schuss.curvature.products import Curvature
from schuss.errors import real, whole


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The density of eigenvalues, as seen by some random vectors.

    `nodes` and `weights` (probes × steps): each row is one vector's quadrature, its weights summing to 1.
    `density` ± `error` (one standard error) is drawn on `grid` with Gaussians of `width`; it integrates to 1.
    `trace` ± `trace_error` is the sum of all `n` eigenvalues. Units: loss per weight².
    """

    nodes: Array
    weights: Array
    n: int
    grid: Array
    density: Array
    error: Array
    width: float
    trace: float
    trace_error: float
    products: int
    matrix: str

    def mean(self, function: Any) -> tuple[float, float]:
        """The mean of function(λ) over all eigenvalues, and its standard error.

        `function` maps an array of eigenvalues to an array; the trace is n times the mean of λ.
        """
        return _mean_and_error((self.weights * function(self.nodes)).sum(axis=1))

    def below(self, value: float) -> tuple[float, float]:
        """The fraction of eigenvalues under `value`, and its standard error: `below(0)` is the negative part."""
        return self.mean(lambda nodes: nodes < value)

    def on(self, grid: ArrayLike, width: float) -> tuple[Array, Array]:
        """The density and its standard error at other points, blurred by Gaussians of another width."""
        return _blurred(self.nodes, self.weights, np.asarray(grid, dtype=np.float64), width)

    def __repr__(self) -> str:
        """Range, mean and negative part, each with its error."""
        fraction, error = self.below(0.0)
        return (
            f"spectrum of the {self.matrix} of {self.n:,} weights, {len(self.nodes)} random vectors, "
            f"{self.products} matrix-vector products\n"
            f"  from {self.nodes.min():.4g} to {self.nodes.max():.4g}, trace {self.trace:.4g} ± "
            f"{self.trace_error:.2g}, below zero {fraction:.1%} ± {error:.1%}"
        )


def spectrum(
    model: Model,
    loss: Loss,
    batch: Any,
    *,
    probes: int = 8,
    steps: int | None = None,
    matrix: str = "hessian",
    points: int = 400,
    width: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Spectrum:
    """The density of the Hessian's eigenvalues, with error bars.

    Args:
        model, loss, batch, matrix, seed, progress: as for `extreme_eigenvalues`, and so are the errors.
        probes: random vectors, at least 2; the error bars fall as 1/√probes.
        steps: Lanczos steps for each vector: the finer, the more detail. Default up to 80, within 24 vectors
            of memory or 16 MiB.
        points: of the grid on which the density is drawn.
        width: of the Gaussians it is drawn with; default 1/50 of the range.

    >>> x = torch.zeros(3, dtype=torch.float64)
    >>> bowl = lambda x, _: (torch.tensor([1.0, 2.0, 6.0]) * x**2).sum() / 2
    >>> spectrum(x, bowl, None).below(4.0)[0] < 1
    True
    """
    probes = whole("probes", probes, 2, advice="One vector has no error bar.")
    steps = None if steps is None else whole("steps", steps, 1)
    points = whole("points", points, 2)
    if width is not None:
        real("width", width, "a finite number > 0", lambda x: 0 < x < np.inf)
    with objective(model, loss, batch) as f:
        f.steady()
        steps = min(f.n, steps or min(80, default_rows(f.n, f.dtype.itemsize) - 1))
        curvature = Curvature(f, matrix)
        f.claim(f"{steps} Lanczos steps", steps + 1 + SPARE, "Ask for fewer steps.")
        basis = f.zeros(steps + 1)
        generator = torch.Generator(f.device).manual_seed(seed)
        nodes, weights = np.zeros((2, probes, steps))
        for probe in range(probes):
            basis.zero_()
            basis[0].normal_(generator=generator)
            space = Krylov(curvature, basis, 1, generator)
            while space.m < steps:
                space.grow()
                if progress is not None:
                    progress(probe * steps + space.m, probes * steps)
            is_symmetric(space.asymmetry)
            ritz = space.ritz()
            nodes[probe], weights[probe] = ritz.values, ritz.coordinates[0] ** 2
        reach = float(nodes.max() - nodes.min()) or abs(float(nodes.max())) or 1.0
        width = reach / 50 if width is None else width
        grid = np.linspace(nodes.min() - 3 * width, nodes.max() + 3 * width, points)
        density, error = _blurred(nodes, weights, grid, width)
        trace, trace_error = _mean_and_error((weights * nodes).sum(axis=1) * f.n)
        return Spectrum(
            nodes, weights, f.n, grid, density, error, width, trace, trace_error, probes * steps, matrix
        )


def _mean_and_error(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _blurred(nodes: Array, weights: Array, grid: Array, width: float) -> tuple[Array, Array]:
    bells = np.exp(-(((grid - nodes[..., None]) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    by_probe = (weights[..., None] * bells).sum(axis=1)
    return by_probe.mean(axis=0), by_probe.std(axis=0, ddof=1) / np.sqrt(len(nodes))
