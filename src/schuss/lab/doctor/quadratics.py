r"""How fast, and up to which curvature, the compiled methods contract a quadratic.

On ½ h w² a method with momentum moves by wₜ₊₁ = T wₜ − D wₜ₋₁. Four places of a run give T and D, whose
companion matrix has the spectral radius that theory states. (A slope fitted to a long run would not do:
methods at their best settings have double roots and run slower than their rate for long.)

Sources: Polyak 1964; Nesterov 1983; Lessard, Recht and Packard 2016 (the tuned Nesterov rate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schuss.curvature import stability_limit
from schuss.lab.doctor.finding import Finding, close
from schuss.torch import SGD, Adam

Array = NDArray[np.float64]
Build = Callable[[list[Tensor]], torch.optim.Optimizer]

KAPPA = 100.0
WARM = 400  # steps with no gradient after which Adam's bias corrections are 1


def rates() -> Iterator[Finding]:
    """The contraction of the worst of 101 eigenvalues between 1 and κ, for four methods at their best."""
    largest = KAPPA
    root = math.sqrt(KAPPA)
    h = np.geomspace(1, largest, 101)
    heavy = dict(lr=4 / (math.sqrt(largest) + 1) ** 2, momentum=((root - 1) / (root + 1)) ** 2)
    nesterov = dict(lr=1 / largest, momentum=(root - 1) / (root + 1))
    wide = math.sqrt(3 * KAPPA + 1)
    tuned = dict(lr=4 / (3 * largest + 1), momentum=(wide - 2) / (wide + 2))
    methods: list[tuple[str, dict[str, float], bool, float]] = [
        ("gradient descent", dict(lr=2 / (largest + 1)), False, (KAPPA - 1) / (KAPPA + 1)),
        ("heavy ball", heavy, False, (root - 1) / (root + 1)),
        ("Nesterov", nesterov, True, 1 - 1 / root),
        ("Nesterov, tuned", tuned, True, 1 - 2 / wide),
    ]
    for name, settings, look_ahead, truth in methods:

        def build(w: list[Tensor], settings=settings, look_ahead=look_ahead) -> torch.optim.Optimizer:
            return SGD(w, **settings, nesterov=look_ahead)

        measured = float(radius(build, h, settings.get("momentum", 0.0)).max())
        # At a double root the radius feels the square root of rounding.
        yield close(name, truth, measured, 1e-6)


def limits() -> Iterator[Finding]:
    """The curvature at which each method stops contracting, found by bisection, in units of 1/lr."""
    lr, beta = 0.1, 0.9
    methods: list[tuple[str, Build, float, int]] = [
        ("gradient descent", lambda w: SGD(w, lr=lr), 2, 0),
        ("heavy ball, β 0.9", lambda w: SGD(w, lr=lr, momentum=beta), 2 * (1 + beta), 0),
        (
            "Nesterov, β 0.9",
            lambda w: SGD(w, lr=lr, momentum=beta, nesterov=True),
            2 * (1 + beta) / (1 + 2 * beta),
            0,
        ),
        (
            "averaged momentum, β 0.9",
            lambda w: SGD(w, lr=lr, momentum=beta, dampening=beta),
            2 * (1 + beta) / (1 - beta),
            0,
        ),
        # Gradients this small leave eps as Adam's whole denominator.
        ("Adam, β₁ 0.9", lambda w: Adam(w, lr=lr, eps=1.0), 2 * (1 + beta) / (1 - beta), WARM),
    ]
    for name, build, truth, warm in methods:
        momentum = 0.0 if name == "gradient descent" else beta
        low, high = 0.5 * truth / lr, 2 * truth / lr
        for _ in range(30):
            middle = (low + high) / 2
            stable = radius(build, np.array([middle]), momentum, warm)[0] < 1
            low, high = (middle, high) if stable else (low, middle)
        stated = float(stability_limit(build([torch.zeros(1, requires_grad=True)]))) * lr
        yield close(name, truth, low * lr, 1e-5, 6)
        yield close("    by stability_limit", truth, stated, 1e-12, 6)


def radius(build: Build, h: Array, momentum: float, warm: int = 0) -> Array:
    """The spectral radius of one step on ½ h w², for each h, from a run of the compiled method."""
    w = torch.full((len(h),), 1e-9, dtype=torch.float64, requires_grad=True)
    curvature = torch.from_numpy(h)
    optimizer = build([w])
    for _ in range(warm):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    places: list[Array] = []
    for _ in range(5):
        w.grad = curvature * w.detach()
        optimizer.step()
        places.append(w.detach().numpy().copy())
    if not momentum:
        return np.abs(places[1] / places[0])
    found = np.empty(len(h))
    for i in range(len(h)):
        a, b, c, d = (float(place[i]) for place in places[:4])
        T, minus_D = np.linalg.lstsq(np.array([[b, a], [c, b]]), np.array([c, d]), rcond=None)[0]
        found[i] = np.abs(np.linalg.eigvals(np.array([[T, minus_D], [1.0, 0.0]]))).max()
    return found
