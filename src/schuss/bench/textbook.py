"""The optimizers as courses teach them: plain NumPy on dicts of arrays, one array operation after another.

The baseline of the benchmark of `schuss.numpy`. Each class is what a student writes from the formulas, with
the conventions of such notes: the learning rate is inside the velocity, and ε inside the root of AdaGrad and
RMSProp but outside Adam's. Every operation makes an array of the size of the weights, which is the cost that
the benchmark shows; so these must not be made faster.
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def zeros_like(params: Arrays) -> Arrays:
    """Zeros of the same shapes."""
    return {name: np.zeros_like(weights) for name, weights in params.items()}


class SGD:
    """θ ← θ − α g."""

    def __init__(self, learning_rate: float = 1e-3) -> None:
        """Start with nothing remembered."""
        self.learning_rate = learning_rate

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Take one step, in place."""
        for name in params:
            params[name] -= self.learning_rate * grads[name]


class Momentum:
    """v ← ρ v − α g, θ ← θ + v."""

    def __init__(self, learning_rate: float = 1e-3, momentum: float = 0.9) -> None:
        """Start with nothing remembered."""
        self.learning_rate, self.momentum = learning_rate, momentum
        self.velocity: Arrays = {}

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Take one step, in place."""
        self.velocity = self.velocity or zeros_like(params)
        for name in params:
            self.velocity[name] = self.momentum * self.velocity[name] - self.learning_rate * grads[name]
            params[name] += self.velocity[name]


class AdaGrad:
    """G ← G + g², θ ← θ − α g / √(G + ε)."""

    def __init__(self, learning_rate: float = 1e-2, epsilon: float = 1e-8) -> None:
        """Start with nothing remembered."""
        self.learning_rate, self.epsilon = learning_rate, epsilon
        self.total: Arrays = {}

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Take one step, in place."""
        self.total = self.total or zeros_like(params)
        for name in params:
            self.total[name] = self.total[name] + grads[name] ** 2
            params[name] -= self.learning_rate * grads[name] / np.sqrt(self.total[name] + self.epsilon)


class RMSProp:
    """s ← β s + (1 − β) g², θ ← θ − α g / √(s + ε)."""

    def __init__(self, learning_rate: float = 1e-3, beta: float = 0.9, epsilon: float = 1e-8) -> None:
        """Start with nothing remembered."""
        self.learning_rate, self.beta, self.epsilon = learning_rate, beta, epsilon
        self.average: Arrays = {}

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Take one step, in place."""
        self.average = self.average or zeros_like(params)
        for name in params:
            self.average[name] = self.beta * self.average[name] + (1 - self.beta) * grads[name] ** 2
            params[name] -= self.learning_rate * grads[name] / np.sqrt(self.average[name] + self.epsilon)


class Adam:
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← θ − α m̂ / (√v̂ + ε)."""

    def __init__(
        self, learning_rate: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
    ) -> None:
        """Start with nothing remembered."""
        self.learning_rate, self.beta1, self.beta2, self.epsilon = learning_rate, beta1, beta2, epsilon
        self.mean: Arrays = {}
        self.square: Arrays = {}
        self.step = 0

    def update(self, params: Arrays, grads: Arrays) -> None:
        """Take one step, in place."""
        if self.step == 0:
            self.mean, self.square = zeros_like(params), zeros_like(params)
        self.step += 1
        for name in params:
            self.mean[name] = self.beta1 * self.mean[name] + (1 - self.beta1) * grads[name]
            self.square[name] = self.beta2 * self.square[name] + (1 - self.beta2) * grads[name] ** 2
            mean_hat = self.mean[name] / (1 - self.beta1**self.step)
            square_hat = self.square[name] / (1 - self.beta2**self.step)
            params[name] -= self.learning_rate * mean_hat / (np.sqrt(square_hat) + self.epsilon)
