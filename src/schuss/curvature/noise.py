r"""How noisy mini-batch gradients are, as the batch size at which noise and signal are equal.

With G the gradient of the expected loss and Σ the covariance of one example's gradient, a batch of B has
gradient g = G + e, E‖e‖² = tr Σ / B. The noise scale is tr Σ / ‖G‖². From batches i of Bᵢ examples, N in all,
K batches, ḡ = Σ Bᵢ gᵢ / N,

    tr Σ ≈ Σ Bᵢ ‖gᵢ − ḡ‖² / (K − 1)        ‖G‖² ≈ ‖ḡ‖² − tr Σ / N

both without bias: numerator and denominator are averaged over all pairs of batches before the one division.
(The mean of the ratios of single pairs is far off, and their median too.)

Sources: McCandlish, Kaplan, Amodei et al. 2018, appendix A; Fieller 1954 (interval of a ratio); Busing,
Meijer and Van der Leeden 1999 (jackknife over unequal groups).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schuss.curvature.lanczos import Array, inner
from schuss.curvature.memory import SPARE
from schuss.curvature.objective import Loss, Model, Objective, Pieces, Progress, objective, shape_of
from schuss.curvature.products import Curvature
from schuss.errors import real, refusal

GROUPS = 20
"""Sums of gradients in memory for the interval: with the current gradient under 24 vectors."""


@dataclass(frozen=True, eq=False)
class NoiseScale:
    """The gradient noise scale, in examples.

    `simple` = tr Σ / ‖G‖²: with a batch of that size noise and signal have the same length. `interval` covers
    the true value with probability `level`; it ends at infinity where the signal is not told from zero.
    `trace` is tr Σ of one example and `signal` ‖G‖². `weighted` = tr(HΣ) / (GᵀHG), with `weighted_interval`, is the
    batch beyond which a larger one saves few steps; None unless curvature was asked for.
    """

    simple: float
    interval: tuple[float, float]
    level: float
    trace: float
    signal: float
    batches: int
    examples: int
    weighted: float | None = None
    weighted_interval: tuple[float, float] | None = None

    def __repr__(self) -> str:
        """The number with its interval."""
        text = (
            f"noise scale {self.simple:.4g} examples, {self.level:.0%} interval {self.interval[0]:.4g} to "
            f"{self.interval[1]:.4g} ({self.batches} batches, {self.examples} examples)"
        )
        if self.weighted is not None and self.weighted_interval is not None:
            low, high = self.weighted_interval
            text += f"\n  weighted by curvature {self.weighted:.4g}, {low:.4g} to {high:.4g}"
        return text


def gradient_noise_scale(
    model: Model,
    loss: Loss,
    batches: Iterable[Any],
    *,
    batch_size: int | Callable[[Any], int] | None = None,
    curvature: Any = None,
    level: float = 0.95,
    progress: Progress | None = None,
) -> NoiseScale:
    """The gradient noise scale tr Σ / ‖G‖² of a model at its weights, with an interval.

    Args:
        model: an `nn.Module`, or the point of a plain function.
        loss: `loss(model, batch)`, the *mean* over the batch's examples.
        batches: any iterable of at least two batches of independently drawn examples, each seen once, as an epoch of
            a shuffled loader. Sizes may differ.
        batch_size: examples in a batch, or a function of the batch; default the first dimension of the first
            tensor or array in it.
        curvature: a batch at which the Hessian is measured, for the `weighted` scale too, by up to 20 HVPs.
        level: of the interval, by a jackknife over up to 20 groups of batches and Fieller's theorem.
        progress: called as `progress(done, at_most)` after each batch; at_most is 0 where that is unknown.

    Dropout draws a new mask for each batch here, as in training: its noise is part of the gradient's.
    Memory: at most 20 gradients, however many batches.

    Raises:
        ValueError: as `hvp`; fewer than two batches; a batch without a size; a loss that changes between calls.

    >>> x = torch.tensor([1.0, -1.0], dtype=torch.float64)
    >>> draws = torch.randn(64, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> scale = gradient_noise_scale(x, lambda x, b: ((b @ x) ** 2).mean() / 2, draws)
    >>> bool(scale.interval[0] < 3 < scale.interval[1])  # d + 1 for isotropic draws in d dimensions
    True
    """
    level = real("level", level, "in (0, 1)", lambda x: 0 < x < 1, "0.95 is usual.")
    if not hasattr(batches, "__iter__"):
        raise refusal("batches", batches, "an iterable of batches", "Try a list or a DataLoader.")
    with objective(model, loss, None) as f:
        groups = _grouped(f, batches, batch_size, 2 if curvature is None else SPARE, progress)
        rows, (sizes, squares, counts) = groups.sums[: groups.used], groups.totals[:, : groups.used]
        trace, signal, interval = _scale(inner(rows, rows), sizes, squares, counts, level)
        result = NoiseScale(
            simple=trace / signal if signal > 0 else math.inf,
            interval=interval,
            level=level,
            trace=trace,
            signal=signal,
            batches=int(counts.sum()),
            examples=int(sizes.sum()),
        )
        if curvature is None:
            return result
        f.batch = curvature
        apply = Curvature(f)
        curved = np.vstack([inner(apply(row[None]), rows) for row in rows])  # all rᵢᵀ H rⱼ
        trace, signal, interval = _scale(curved, sizes, np.diag(curved) / sizes, np.ones(len(rows)), level)
        weighted = trace / signal if signal > 0 else math.inf
        return replace(result, weighted=weighted, weighted_interval=interval)


def _grouped(
    f: Objective,
    batches: Iterable[Any],
    batch_size: int | Callable[[Any], int] | None,
    spare: int,
    progress: Progress | None,
) -> _Groups:
    """The sums of all batches' gradients, in memory that is claimed at the first of them."""
    groups, count = None, 0
    for count, batch in enumerate(batches, 1):
        f.batch = batch
        if groups is None:
            f.steady()
            f.claim("the noise scale", GROUPS + spare, "Measure a part of the model.")
            groups = _Groups(torch.empty(GROUPS, f.n, dtype=f.dtype, device=f.device))
        size = _examples(batch, batch_size)
        groups.add(f.gradient(rewind=False)[1], size)
        if progress is not None:
            progress(count, len(batches) if isinstance(batches, Sized) else 0)
    if groups is None or count < 2:
        raise refusal("batches", f"{count} batches", "at least two", "Noise is a difference between batches.")
    return groups


class _Groups:
    """Batches in groups of equal number; when there are too many groups, neighbours are joined."""

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums  # Σ B g, a row for each group
        self.totals = np.zeros((3, len(sums)))  # Σ B, Σ B ‖g‖² and the number of batches of each group
        self.used, self.per_group = 0, 1

    def add(self, gradient: Tensor, size: int) -> None:
        if self.used == 0 or self.totals[2, self.used - 1] == self.per_group:
            if self.used == len(self.sums):
                self.used //= 2
                for i in range(self.used):
                    torch.add(self.sums[2 * i], self.sums[2 * i + 1], out=self.sums[i])
                self.totals[:, : self.used] = self.totals[:, ::2] + self.totals[:, 1::2]
                self.per_group *= 2
            self.sums[self.used] = 0
            self.totals[:, self.used] = 0
            self.used += 1
        last = self.used - 1
        self.sums[last].add_(gradient, alpha=size)
        self.totals[:, last] += size, size * float(inner(gradient[None], gradient[None])[0, 0]), 1


def _scale(
    gram: Array, sizes: Array, squares: Array, counts: Array, level: float
) -> tuple[float, float, tuple[float, float]]:
    """tr Σ and ‖G‖² from the groups' sums, and the interval of their ratio."""

    def estimate(groups: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
        n = sizes[groups].sum()
        total = gram[np.ix_(groups, groups)].sum()
        trace = (squares[groups].sum() - total / n) / (counts[groups].sum() - 1)
        return np.array([trace, total / n**2 - trace / n])

    g = len(sizes)
    whole = estimate(np.ones(g, dtype=bool))
    if counts.sum() - counts.max() < 2:
        return float(whole[0]), float(whole[1]), (0.0, math.inf)
    left_out = np.array([estimate(np.arange(g) != j) for j in range(g)])
    h = (sizes.sum() / sizes)[:, None]
    centre = g * whole - ((1 - 1 / h) * left_out).sum(axis=0)
    off = (h * whole - (h - 1) * left_out - centre) / np.sqrt(h - 1)
    covariance = off.T @ off / g
    return float(whole[0]), float(whole[1]), _fieller(whole, covariance, _student_t((1 + level) / 2, g - 1))


def _fieller(pair: Array, covariance: Array, t: float) -> tuple[float, float]:
    """The ratios R ≥ 0 with |a − R b| ≤ t × its standard error, for estimates (a, b) of given covariance."""
    (a, b), v = pair, covariance
    square, half, constant = b * b - t * t * v[1, 1], a * b - t * t * v[0, 1], a * a - t * t * v[0, 0]
    root = math.sqrt(max(half * half - square * constant, 0.0))
    if square > 0 and b > 0:  # the denominator is told from zero
        return max((half - root) / square, 0.0), max((half + root) / square, 0.0)
    if square < 0 and constant > 0:  # only the numerator is: everything beyond one root
        return max((half - root) / square, (half + root) / square, 0.0), math.inf
    return (0.0, math.inf) if constant <= 0 else (math.inf, math.inf)


def _student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t above the median, by the angle: t = √ν tan θ, density ∝ cosᵛ⁻¹ θ.

    >>> round(_student_t(0.975, 10), 4), round(_student_t(0.975, 1), 3)
    (2.2281, 12.706)
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp((2 * probability - 1) * area[-1], area, angle)))


def _examples(batch: Any, batch_size: int | Callable[[Any], int] | None) -> int:
    if callable(batch_size):
        return batch_size(batch)
    if batch_size is not None:
        return batch_size
    if isinstance(batch, Pieces):
        return sum(_examples(piece, None) for piece in batch.batches)
    shape = shape_of(batch)
    if not shape or not shape[0]:
        raise refusal("batch", type(batch).__name__, "a batch with a tensor of examples", "Give batch_size=.")
    return shape[0]
