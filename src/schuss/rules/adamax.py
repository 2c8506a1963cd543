"""Adamax: Adam with the largest recent gradient in place of the typical one.

Source: Kingma and Ba 2015, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, maximum, number


@dataclass(frozen=True, kw_only=True)
class Adamax(Rule):
    r"""Step along the average gradient, measured in units of its largest recent size.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay
        m ← β₁ m + (1 − β₁) g             average gradient
        u ← max(β₂ u, |g| + ε)            largest recent size
        w ← w − η m / ((1 − β₁ᵗ) u)

    | here           | paper | units  | domain | meaning                                   |
    |----------------|-------|--------|--------|-------------------------------------------|
    | `lr`           | α     | of w   | ≥ 0    | how far a steady gradient moves w         |
    | `beta1`        | β₁    | none   | [0, 1) | memory of m: 1/(1 − β₁) steps             |
    | `beta2`        | β₂    | none   | [0, 1) | how slowly u forgets                      |
    | `eps`          | (0)   | of g   | ≥ 0    | the least u                               |
    | `weight_decay` | λ     | of g/w | ≥ 0    | pull towards 0                            |

    State: m and u.

    Where implementations differ: the paper has no ε; Keras adds it to u only in the denominator.

    >>> rule = Adamax(lr=0.1)
    >>> w, m, u = rule.update(1.0, 2.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)
    0.9
    """

    lr: float = number(2e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the first gradient would rule for ever.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "u")
    bounds = {"u": (0, math.inf)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        return dict(
            l2=self.weight_decay,
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            eps=self.eps,
            step=self.lr / left_to_average(self.beta1, step),
        )

    @staticmethod
    def update(w, g, m, u, l2, decay1, gain1, decay2, eps, step):
        """One weight, one step."""
        g = g + l2 * w
        m = decay1 * m + gain1 * g
        u = maximum(decay2 * u, abs(g) + eps)
        w = w - step * m / u
        return w, m, u
