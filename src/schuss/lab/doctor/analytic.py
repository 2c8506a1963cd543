"""Curvature and gradient noise where theory or a table gives the number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import root
from torch import Tensor, nn

from schuss.curvature import (
    condition_number,
    extreme_eigenvalues,
    gradient_noise_scale,
    quadratic_model,
    stationary_point,
)
from schuss.lab.doctor.finding import Finding, close, judged
from schuss.lab.landscape.surfaces import himmelblau
from schuss.lab.tasks.functions import valley

DIMENSIONS = 20


def noise() -> Iterator[Finding]:
    """Linear regression without label noise on fresh isotropic draws: the noise scale is d + 1 everywhere."""
    draw = torch.Generator().manual_seed(0)
    batches = torch.randn(200, 256, DIMENSIONS, dtype=torch.float64, generator=draw)
    error = torch.randn(DIMENSIONS, dtype=torch.float64, generator=draw)
    found = gradient_noise_scale(error, lambda e, x: (x @ e).square().mean() / 2, batches, level=0.999)
    low, high = found.interval
    known = DIMENSIONS + 1
    measured = f"{found.simple:.3g} (99.9 %: {low:.3g} to {high:.3g})"
    holds = low <= known <= high and high - low < known / 2
    yield judged(f"regression, d = {DIMENSIONS}", f"d + 1 = {known}", measured, holds)


def curvature() -> Iterator[Finding]:
    """Eigenvalues with multiplicity, κ, verdicts, and the order of the Taylor error."""
    at = torch.ones(2, dtype=torch.float64)
    found = condition_number(at, lambda w, _: valley(w), None)
    yield close("Rosenbrock at (1, 1): λmax", 1001.6006, found.largest, 1e-7)
    yield close("    λmin", 0.399361, found.smallest, 1e-5, 6)
    yield close("    κ", 2508.01, found.value, 1e-5, 6)
    plane = torch.tensor([1.0, -3.0], dtype=torch.float64)
    found = extreme_eigenvalues(at, lambda w, _: (plane * w * w).sum() / 2, None, k=1)
    ends = found.largest[0], found.smallest[0]
    measured = "{:g} and {:g}".format(*ends).replace("-", "−")
    yield judged("ends of diag(1, −3)", "1 and −3", measured, bool(np.allclose(ends, [1, -3], rtol=1e-10)))
    yield from softmax_on_digits()
    yield from stationary_points()
    yield taylor()


def softmax_on_digits() -> Iterator[Finding]:
    """H = (I/10 − 11ᵀ/100) ⊗ XᵀX/n at W = 0: each eigenvalue nine times, and 91 zeros."""
    from sklearn.datasets import load_digits

    X, y = cast("Any", load_digits(return_X_y=True))
    batch = torch.tensor(X / 16), torch.tensor(y)
    W = torch.zeros(64, 10, dtype=torch.float64)

    def loss(W: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(batch[0] @ W, batch[1])

    # Forty Hessian-vector products in blocks of ten copies: the multiplicity is measured, not assumed.
    ends = extreme_eigenvalues(W, loss, batch, k=10)
    top = ends.largest
    yield close("softmax on digits: λmax", 1.04552996869546, float(top[0]), 1e-9, 12)
    copies = int((np.abs(top - top[0]) < 1e-8 * top[0]).sum())
    yield judged("    its multiplicity", "9", str(copies), copies == 9)
    known = np.linalg.eigvalsh(batch[0].numpy().T @ batch[0].numpy() / len(X)) / 10
    every = np.concatenate([np.repeat(known, 9), np.zeros(64)])
    expected = int((every < 1e-12 * known.max()).sum())
    zeros = condition_number(W, loss, batch, cut=1e-12).zeros
    yield judged("    its zeros", f"{expected}", f"{zeros}", zeros == expected == 91)


def stationary_points() -> Iterator[Finding]:
    """Himmelblau's nine, found by SciPy from a grid of starts and judged by their curvature."""
    slope = torch.func.grad(himmelblau)
    found: list[Any] = []
    for start in np.array(np.meshgrid(np.linspace(-4, 4, 9), np.linspace(-4, 4, 9))).reshape(2, -1).T:
        end = root(lambda x: slope(torch.tensor(x)).numpy(), start, tol=1e-13)
        if end.success and not any(np.allclose(end.x, known, atol=1e-6) for known in found):
            found.append(end.x)
    kinds = [stationary_point(torch.tensor(x), lambda w, _: himmelblau(w), None).verdict for x in found]
    known = "4 min, 4 saddle, 1 max"
    counts = [kinds.count(kind) for kind in ("minimum", "saddle", "maximum")]
    measured = "{} min, {} saddle, {} max".format(*counts)
    yield judged("Himmelblau, stationary", known, measured, measured == known and len(found) == 9)


def taylor() -> Finding:
    """The error of the second-order model falls as the third power of the step, in a small network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
        size = sum(w.numel() for w in model.parameters())
        step = F.normalize(torch.randn(size, dtype=torch.float64), dim=0)
    scales = [0.04, 0.02, 0.01]
    found = quadratic_model(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x, y), step, scales)
    errors = np.abs(found.actual - found.predicted)
    order = float(np.polyfit(np.log(scales), np.log(errors), 1)[0])
    return judged("order of Taylor error", "3", f"{order:.3f}", abs(order - 3) < 0.1)
