"""Adan: Adam with Nesterov momentum, from the differences of successive gradients.

Source: Xie, Zhou, Li, Lin and Yan 2024, algorithm 1, with the bias corrections of the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, number, option, sqrt, where


@dataclass(frozen=True, kw_only=True)
class Adan(Rule):
    r"""Step along the average gradient and its trend, measured in units of the gradient's own typical size.

    At step t = 1, 2, ... a weight w with gradient g, and the gradient h of the step before, moves by

        δ = g − h                         change of the gradient; 0 at the first step
        m ← β₁ m + (1 − β₁) g             average gradient
        d ← β₂ d + (1 − β₂) δ             average change
        n ← β₃ n + (1 − β₃) (g + β₂ δ)²   average square of the gradient ahead
        m̂ = m / (1 − β₁ᵗ), d̂ = d / (1 − β₂ᵗ), n̂ = n / (1 − β₃ᵗ)
        w ← (w − η (m̂ + β₂ d̂) / (√n̂ + ε)) / (1 + η λ),  h ← g

    | here           | paper  | units | domain | meaning                                                         |
    |----------------|--------|-------|--------|-----------------------------------------------------------------|
    | `lr`           | η      | of w  | ≥ 0    | how far a steady gradient moves w                               |
    | `beta1`        | 1 − β₁ | none  | [0, 1) | memory of m: 1/(1 − β₁) steps                                   |
    | `beta2`        | 1 − β₂ | none  | [0, 1) | memory of d, and how far to look ahead                          |
    | `beta3`        | 1 − β₃ | none  | [0, 1) | memory of n: 1/(1 − β₃) steps                                   |
    | `eps`          | ε      | of g  | ≥ 0    | gradients smaller than this move w less                         |
    | `weight_decay` | λ      | 1/η   | ≥ 0    | pull towards 0                                                  |
    | `no_prox`      |        |       |        | decay first, w ← (1 − η λ) w as AdamW, and not by 1/(1 + η λ)  |

    State: m, d and n; h, the last gradient. The paper advises learning rates 5 to 10 times Adam's.

    Where implementations differ: the β of the authors' code, and of Schuss, is 1 − β of the paper. The paper starts m
    at g and n at g²; the authors' code and Schuss start at 0 and correct. Optax takes the code's β but multiplies by
    1 − β₂ where the code multiplies by β₂, so that it hardly looks ahead: 0.08 in place of 0.92. The authors' code
    can clip all gradients by their norm (`max_grad_norm`), as `max_norm` does here. It stores −h, as `neg_pre_grad`.

    >>> rule = Adan(lr=0.1)
    >>> w, m, d, n, h = rule.update(1.0, 2.0, 0.0, 0.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6), d, h
    (0.9, 0.0, 2.0)
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.98, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.92, low=0, below=1, advice="With 1 the average would never learn.")
    beta3: float = number(0.99, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)
    no_prox: bool = option(False)

    tuples = {"betas": ("beta1", "beta2", "beta3")}
    state = ("m", "d", "n", "h")
    bounds = {"n": (0, math.inf)}
    space = {"lr": (3.2e-4, 8e-2), "1 - beta1": (5e-3, 0.1), "weight_decay": (5e-3, 1.0)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        lost = self.lr * self.weight_decay
        lr = self.lr if self.no_prox else self.lr / (1 + lost)  # (w − η u) / (1 + η λ), multiplied out
        return dict(
            follows=1.0 if step > 1 else 0.0,
            b1=self.beta1,
            gain1=1 - self.beta1,
            b2=self.beta2,
            gain2=1 - self.beta2,
            b3=self.beta3,
            gain3=1 - self.beta3,
            step_m=lr / left_to_average(self.beta1, step),
            step_d=lr * self.beta2 / left_to_average(self.beta2, step),
            root=1 / math.sqrt(left_to_average(self.beta3, step)),
            eps=self.eps,
            keep=1 - lost if self.no_prox else 1 / (1 + lost),
        )

    @staticmethod
    def update(w, g, m, d, n, h, follows, b1, gain1, b2, gain2, b3, gain3, step_m, step_d, root, eps, keep):
        """One weight, one step."""
        change = where(follows > 0, g - h, 0.0)
        ahead = g + b2 * change
        m = b1 * m + gain1 * g
        d = b2 * d + gain2 * change
        n = b3 * n + gain3 * ahead * ahead
        w = keep * w - (step_m * m + step_d * d) / (sqrt(n) * root + eps)
        return w, m, d, n, g
