"""RAdam: Adam that waits until its average of squares can be trusted.

Source: Liu, Jiang, He, Chen, Liu, Gao and Han 2020, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, number, option, sqrt, where


@dataclass(frozen=True, kw_only=True)
class RAdam(Rule):
    r"""Step along the average gradient, scaled by its typical size only once that is known well enough.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay (decoupled: w ← (1 − η λ) w instead)
        m ← β₁ m + (1 − β₁) g             average gradient
        v ← β₂ v + (1 − β₂) g²            average squared gradient
        m̂ = m / (1 − β₁ᵗ)
        ρ∞ = 2/(1 − β₂) − 1,  ρ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)          length of the average of squares
        if ρ > 5:  r = √((ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ)),  w ← w − η r m̂ √(1 − β₂ᵗ) / (√v + ε)
        else:      w ← w − η m̂

    | here           | paper | units  | domain | meaning                                   |
    |----------------|-------|--------|--------|-------------------------------------------|
    | `lr`           | α     | of w   | ≥ 0    | how far a steady gradient moves w         |
    | `beta1`        | β₁    | none   | [0, 1) | memory of m: 1/(1 − β₁) steps             |
    | `beta2`        | β₂    | none   | [0, 1) | memory of v: 1/(1 − β₂) steps             |
    | `eps`          | ε     | of g   | ≥ 0    | gradients smaller than this move w less   |
    | `weight_decay` | λ     | of g/w | ≥ 0    | pull towards 0                            |
    | `decoupled_weight_decay` | |    |        | decay w by η λ instead of adding λ w to g |

    State: m and v.

    Where implementations differ: the paper rectifies from ρ > 4, PyTorch and Schuss from ρ > 5, Optax from ρ ≥ 5.

    >>> rule = RAdam(lr=0.1)
    >>> w, m, v = rule.update(1.0, 2.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)
    0.8
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)
    decoupled_weight_decay: bool = option(False)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "v")
    bounds = {"v": (0, math.inf)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; before rectification the denominator is eps = 1, without √v."""
        correction1, correction2 = left_to_average(self.beta1, step), left_to_average(self.beta2, step)
        longest = 2 / (1 - self.beta2) - 1
        length = longest - 2 * step * (1 - correction2) / correction2
        rectified = length > 5
        rate = self.lr / correction1
        if rectified:
            rate *= math.sqrt(correction2 * (length - 4) * (length - 2) * longest)
            rate /= math.sqrt((longest - 4) * (longest - 2) * length)
        decoupled = self.decoupled_weight_decay
        return dict(
            l2=0.0 if decoupled else self.weight_decay,
            keep=1 - self.lr * self.weight_decay if decoupled else 1.0,
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            step=rate,
            slope=1.0 if rectified else 0.0,
            eps=self.eps if rectified else 1.0,
        )

    # √v is chosen and not multiplied by slope: where g² has overflowed, 0 · ∞ would be no number.
    @staticmethod
    def update(w, g, m, v, l2, keep, decay1, gain1, decay2, gain2, step, slope, eps):
        """One weight, one step."""
        g = g + l2 * w
        w = keep * w
        m = decay1 * m + gain1 * g
        v = decay2 * v + gain2 * g * g
        w = w - step * m / (where(slope > 0, sqrt(v), 0.0) + eps)
        return w, m, v
