"""NAdam: Adam that looks ahead as Nesterov does.

Source: Dozat 2016, algorithm 2 and its schedule of β₁.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, number, option, sqrt


@dataclass(frozen=True, kw_only=True)
class NAdam(Rule):
    r"""Step along where the average gradient will be, measured in units of its own typical size.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay (decoupled: w ← (1 − η λ) w instead)
        μₜ = β₁ (1 − ½ · 0.96^(t ψ)),     Πₜ = μ₁ μ₂ … μₜ
        m ← β₁ m + (1 − β₁) g             average gradient
        v ← β₂ v + (1 − β₂) g²            average squared gradient
        m̂ = μₜ₊₁ m / (1 − Πₜ₊₁) + (1 − μₜ) g / (1 − Πₜ), v̂ = v / (1 − β₂ᵗ)
        w ← w − η m̂ / (√v̂ + ε)

    | here             | paper | units  | domain | meaning                                   |
    |------------------|-------|--------|--------|-------------------------------------------|
    | `lr`             | η     | of w   | ≥ 0    | how far a steady gradient moves w         |
    | `beta1`          | μ     | none   | [0, 1) | memory of m: 1/(1 − β₁) steps             |
    | `beta2`          | ν     | none   | [0, 1) | memory of v: 1/(1 − β₂) steps             |
    | `eps`            | ε     | of g   | ≥ 0    | gradients smaller than this move w less   |
    | `weight_decay`   | λ     | of g/w | ≥ 0    | pull towards 0                            |
    | `momentum_decay` | ψ     | none   | ≥ 0    | how fast μₜ rises from β₁/2 to β₁         |
    | `decoupled_weight_decay` | |      |        | decay w by η λ instead of adding λ w to g |

    State: m and v; of a whole tensor, the product Πₜ.

    Where implementations differ: Keras has 0.96ᵗ, without ψ; Optax holds μₜ = β₁.

    >>> rule = NAdam(lr=0.1, momentum_decay=0)
    >>> scalars = rule.coefficients(step=1, product=1.0)
    >>> scalars.pop("product")
    0.45
    >>> w, m, v = rule.update(1.0, 2.0, 0.0, 0.0, **scalars)
    >>> round(w, 6)
    0.894357
    """

    lr: float = number(2e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)
    momentum_decay: float = number(4e-3, low=0)
    decoupled_weight_decay: bool = option(False)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "v")
    scalars = ("product",)
    bounds = {"v": (0, math.inf), "product": (0, 1)}

    def initial(self) -> dict[str, float]:
        """An empty product is 1."""
        return {"product": 1.0}

    def coefficients(self, step: int, product: float) -> dict[str, float]:
        """The scalars of one step, and the product of all μ so far."""
        now, ahead = (self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay)) for t in (step, step + 1))
        product = product * now
        decoupled = self.decoupled_weight_decay
        return dict(
            l2=0.0 if decoupled else self.weight_decay,
            keep=1 - self.lr * self.weight_decay if decoupled else 1.0,
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            step_g=self.lr * (1 - now) / (1 - product),
            step_m=self.lr * ahead / (1 - product * ahead),
            root=1 / math.sqrt(left_to_average(self.beta2, step)),
            eps=self.eps,
            product=product,
        )

    @staticmethod
    def update(w, g, m, v, l2, keep, decay1, gain1, decay2, gain2, step_g, step_m, root, eps):
        """One weight, one step."""
        g = g + l2 * w
        w = keep * w
        m = decay1 * m + gain1 * g
        v = decay2 * v + gain2 * g * g
        w = w - (step_g * g + step_m * m) / (sqrt(v) * root + eps)
        return w, m, v
