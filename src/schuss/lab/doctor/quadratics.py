r"""How fast, and up to which curvature, the compiled methods contract a quadratic.

On ½ h w² a method with momentum moves by wₜ₊₁ = T wₜ − D wₜ₋₁. Four weights of a run give T and D, whose
companion matrix has the spectral radius that theory states. (A slope fitted to a long run would not do:
methods at their best settings have double roots and run slower than their rate for long.)

Sources: Polyak 1964; Nesterov 1983; Lessard, Recht and Packard 2016 (the tuned Nesterov rate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schuss.curvature import stability_limit
from schuss.lab.doctor.finding import Finding, close
from schuss.lab.doctor.steps import Array, wide
from schuss.torch import SGD, Adam

Build = Callable[[list[Tensor]], torch.optim.Optimizer]

KAPPA = 100.0
WARM = 400  # steps with no gradient after which Adam's bias corrections are 1


def rates() -> Iterator[Finding]:
    """The contraction of the worst of 101 eigenvalues between 1 and κ, for four methods at their best."""
    h = np.geomspace(1, KAPPA, 101)
    root, tuned = math.sqrt(KAPPA), math.sqrt(3 * KAPPA + 1)
    momentum = (root - 1) / (root + 1)
    methods: list[tuple[str, dict[str, Any], float]] = [
        ("gradient descent", dict(lr=2 / (KAPPA + 1)), (KAPPA - 1) / (KAPPA + 1)),
        ("heavy ball", dict(lr=4 / (root + 1) ** 2, momentum=momentum**2), momentum),
        ("Nesterov", dict(lr=1 / KAPPA, momentum=momentum, nesterov=True), 1 - 1 / root),
        (
            "Nesterov, tuned",
            dict(lr=4 / (3 * KAPPA + 1), momentum=(tuned - 2) / (tuned + 2), nesterov=True),
            1 - 2 / tuned,
        ),
    ]
    for name, settings, known in methods:
        measured = float(radius(partial(SGD, **settings), h, settings.get("momentum", 0.0)).max())
        # At a double root the radius feels the square root of rounding.
        yield close(name, known, measured, 1e-6)


def limits() -> Iterator[Finding]:
    """The curvature at which each method stops contracting, found by bisection, in units of 1/lr."""
    lr, beta = 0.1, 0.9
    sgd, averaged = partial(SGD, lr=lr, momentum=beta), 2 * (1 + beta) / (1 - beta)
    methods: list[tuple[str, Build, float, int]] = [
        ("gradient descent", partial(SGD, lr=lr), 2, 0),
        ("heavy ball, β 0.9", sgd, 2 * (1 + beta), 0),
        ("Nesterov, β 0.9", partial(sgd, nesterov=True), 2 * (1 + beta) / (1 + 2 * beta), 0),
        ("averaged momentum, β 0.9", partial(sgd, dampening=beta), averaged, 0),
        # Gradients this small leave eps as Adam's whole denominator.
        ("Adam, β₁ 0.9", partial(Adam, lr=lr, eps=1.0), averaged, WARM),
    ]
    for name, build, known, warm in methods:
        momentum = 0.0 if name == "gradient descent" else beta
        low, high = 0.5 * known / lr, 2 * known / lr
        for _ in range(30):
            middle = (low + high) / 2
            stable = radius(build, np.array([middle]), momentum, warm)[0] < 1
            low, high = (middle, high) if stable else (low, middle)
        stated = float(stability_limit(build([torch.zeros(1, requires_grad=True)]))) * lr
        yield close(name, known, low * lr, 1e-5, 6)
        yield close("    by stability_limit", known, stated, 1e-12, 6)


def radius(build: Build, h: Array, momentum: float, warm: int = 0) -> Array:
    """The spectral radius of one step on ½ h w², for each h, from a run of the compiled method."""
    w = torch.full((len(h),), 1e-9, dtype=torch.float64, requires_grad=True)
    curvature, optimizer, run = torch.from_numpy(h), build([w]), list[Array]()
    for step in range(warm + 4):
        w.grad = curvature * w.detach() if step >= warm else torch.zeros_like(w)
        optimizer.step()
        run.append(wide(w))
    run = run[warm:]
    if not momentum:
        return np.abs(run[1] / run[0])
    found = np.empty(len(h))
    for i, (a, b, c, d) in enumerate(np.transpose(run)):
        T, minus_D = np.linalg.lstsq(np.array([[b, a], [c, b]]), np.array([c, d]), rcond=None)[0]
        found[i] = np.abs(np.linalg.eigvals(np.array([[T, minus_D], [1.0, 0.0]]))).max()
    return found
