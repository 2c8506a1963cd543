"""The optimizers as courses teach them: plain NumPy on dicts of arrays, one array operation after another.

The baseline of the benchmark of `schuss.numpy`. Each function takes one step, in place, as a student writes it from
the formulas, with the conventions of such notes: the learning rate is inside the velocity, and ε inside the root of
AdaGrad and RMSProp but outside Adam's. Every operation makes an array of the size of the weights, which is the cost
that the benchmark shows; so these must not be made faster. `state` starts as an empty `defaultdict(float)`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
State = defaultdict[Any, Any]


def sgd(params: Arrays, grads: Arrays, state: State, lr: float = 1e-3) -> None:
    """θ ← θ − α g."""
    for name in params:
        params[name] -= lr * grads[name]


def momentum(params: Arrays, grads: Arrays, state: State, lr: float = 1e-3, rho: float = 0.9) -> None:
    """v ← ρ v − α g, θ ← θ + v."""
    for name in params:
        state[name] = rho * state[name] - lr * grads[name]
        params[name] += state[name]


def adagrad(params: Arrays, grads: Arrays, state: State, lr: float = 1e-2, eps: float = 1e-8) -> None:
    """G ← G + g², θ ← θ − α g / √(G + ε)."""
    for name in params:
        state[name] = state[name] + grads[name] ** 2
        params[name] -= lr * grads[name] / np.sqrt(state[name] + eps)


def rmsprop(
    params: Arrays, grads: Arrays, state: State, lr: float = 1e-3, beta: float = 0.9, eps: float = 1e-8
) -> None:
    """s ← β s + (1 − β) g², θ ← θ − α g / √(s + ε)."""
    for name in params:
        state[name] = beta * state[name] + (1 - beta) * grads[name] ** 2
        params[name] -= lr * grads[name] / np.sqrt(state[name] + eps)


def adam(
    params: Arrays,
    grads: Arrays,
    state: State,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − α m̂ / (√v̂ + ε)."""
    beta1, beta2 = betas
    state["step"] += 1
    for name in params:
        state["m", name] = beta1 * state["m", name] + (1 - beta1) * grads[name]
        state["v", name] = beta2 * state["v", name] + (1 - beta2) * grads[name] ** 2
        mean = state["m", name] / (1 - beta1 ** state["step"])
        square = state["v", name] / (1 - beta2 ** state["step"])
        params[name] -= lr * mean / (np.sqrt(square) + eps)
