"""Whether a contender is right: a few steps against the float64 reference. Nothing wrong is timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from schuss.compile.reference import Reference
from schuss.rules import Rule

Array = np.ndarray[Any, Any]
Moved = Callable[[list[Array], list[list[Array]]], Sequence[Array]]
Make = Callable[[Sequence[torch.Tensor]], Any]

# The last is longer than a row of the launch table; the sizes are multiples of nothing.
SHAPES = ((3,), (33, 5), (40_003,))
STEPS = 6


def weights(dtype: str) -> list[Array]:
    """Weights to start from."""
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for shape in SHAPES]


def gradients(dtype: str) -> list[list[Array]]:
    """The gradients of each step.

    Their size and, once, their sign change from step to step, but no sum of them comes so near to zero that rounding
    decides its sign: what an optimizer makes of a sign is then a fact.
    """
    random = np.random.default_rng(1)
    base = [random.choice([-1.0, 1.0], shape) * random.uniform(1, 2, shape) for shape in SHAPES]
    return [
        [(g * random.uniform(1, 1.5, g.shape) * (-3 if step == 3 else 1)).astype(dtype) for g in base]
        for step in range(1, STEPS + 1)
    ]


def moved_by(make: Make, device: str = "cpu", dtype: str = "float32") -> Moved:
    """What a torch optimizer makes of weights on a device, stored as `dtype`."""

    def moved(weights: list[Array], gradients: list[list[Array]]) -> list[Array]:
        parameters = [torch.nn.Parameter(there(w)) for w in weights]
        optimizer = make(parameters)
        for step in gradients:
            for parameter, g in zip(parameters, step, strict=True):
                parameter.grad = there(g)
            optimizer.step()
        return [parameter.detach().cpu().float().numpy() for parameter in parameters]

    def there(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device, getattr(torch, dtype))

    return moved


def disagreement(rule: Rule, moved: Moved, dtype: str) -> str:
    """What is wrong with a contender that is to follow `rule`, or nothing.

    `moved(weights, gradients)` returns the weights after a step with each of the gradients.
    """
    start, given, untouched = weights(dtype), gradients(dtype), gradients(dtype)
    try:
        found = moved([w.copy() for w in start], given)
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    if not all(map(np.array_equal, itertools.chain(*given), itertools.chain(*untouched))):
        return "writes to the gradients"
    worst = 0.0
    for k, (w, end) in enumerate(zip(start, found, strict=True)):
        meant = Reference(rule, w).run([step[k] for step in untouched])
        travelled = np.abs(meant - w).max()
        rounding = STEPS * np.finfo(dtype).eps * np.abs(w).max()
        allowed = 1e3 * np.finfo(dtype).eps * travelled + rounding
        error = np.abs(np.asarray(end, dtype=np.float64) - meant).max()
        worst = max(worst, np.inf if np.isnan(error) else error / allowed)
    return "" if worst <= 1 else f"off by {worst:.3g} times what rounding allows"
