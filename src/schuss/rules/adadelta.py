"""Adadelta: steps in the units of the weights themselves.

Source: Zeiler 2012, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, number, sqrt


@dataclass(frozen=True, kw_only=True)
class Adadelta(Rule):
    r"""Step down the gradient, scaled by the typical size of recent steps over that of recent gradients.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay
        v ← ρ v + (1 − ρ) g²              average squared gradient
        x = √(u + ε) / √(v + ε) · g       the step, in units of w
        u ← ρ u + (1 − ρ) x²              average squared step
        w ← w − η x

    | here           | paper | units  | domain | meaning                                       |
    |----------------|-------|--------|--------|-----------------------------------------------|
    | `lr`           | (1)   | none   | ≥ 0    | the paper has none, that is 1                 |
    | `rho`          | ρ     | none   | [0, 1] | memory of v and u: 1/(1 − ρ) steps            |
    | `eps`          | ε     | of w²  | ≥ 0    | starts the first steps, inside both roots     |
    | `weight_decay` | λ     | of g/w | ≥ 0    | pull towards 0                                |

    State: v and u.

    Where implementations differ: PyTorch, Optax and Schuss have ρ = 0.9; the paper and Keras 0.95.

    >>> rule = Adadelta()
    >>> w, v, u = rule.update(1.0, 2.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(1 - w, 6)
    0.003162
    """

    lr: float = number(1.0, low=0)
    rho: float = number(0.9, low=0, high=1, advice="It is the weight of the past.")
    eps: float = number(1e-6, low=0)
    weight_decay: float = number(0.0, low=0)

    state = ("v", "u")
    bounds = {"v": (0, math.inf), "u": (0, math.inf)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; the same at every step."""
        return dict(l2=self.weight_decay, decay=self.rho, gain=1 - self.rho, eps=self.eps, lr=self.lr)

    @staticmethod
    def update(w, g, v, u, l2, decay, gain, eps, lr):
        """One weight, one step."""
        g = g + l2 * w
        v = decay * v + gain * g * g
        x = sqrt(u + eps) / sqrt(v + eps) * g
        u = decay * u + gain * x * x
        w = w - lr * x
        return w, v, u
