"""MARS: AdamW on gradients whose noise is reduced by the difference to the previous one.

Source: Yuan, Liu, Wu and others 2024, "MARS: unleashing the power of variance reduction for training large models",
algorithm 2 with its approximation: the previous gradient is that of the previous examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, maximum, norm, number, sqrt


@dataclass(frozen=True, kw_only=True)
class MARS(Rule):
    r"""Step as AdamW does, after pushing each gradient away from the previous one and bounding its tensor's norm.

    At step t = 1, 2, ... a weight w with gradient g moves by

        c = g + γ β₁/(1 − β₁) (g − h)     h is the previous gradient, 0 at first
        c ← c / max(1, ‖c‖)               the norm is that of the tensor
        m ← β₁ m + (1 − β₁) c
        v ← β₂ v + (1 − β₂) c²
        m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)
        w ← (1 − η λ) w − η m̂ / (√v̂ + ε)
        h ← g

    | here           | paper | units | domain | meaning                                                |
    |----------------|-------|-------|--------|--------------------------------------------------------|
    | `lr`           | η     | of w  | ≥ 0    | how far a steady gradient moves w                      |
    | `beta1`        | β₁    | none  | [0, 1) | memory of m: 1/(1 − β₁) steps                          |
    | `beta2`        | β₂    | none  | [0, 1) | memory of v: 1/(1 − β₂) steps                          |
    | `gamma`        | γ     | none  | ≥ 0    | how much of the difference is added; 0: clipped AdamW  |
    | `eps`          | ε     | of c  | ≥ 0    | gradients smaller than this move w less                |
    | `weight_decay` | λ     | 1/η   | ≥ 0    | fraction of w lost per step, over `lr`                 |

    State: m, v, and h, the previous gradient. Two passes over memory.

    Where implementations differ: the authors' code moves 1-D weights by AdamW with rates of its own; here that is a
    group with rule "AdamW". Its exact form takes the previous weights' gradient of the present examples, a second
    backward pass.

    >>> rule = MARS(lr=0.1)
    >>> w, m, v, h = rule.update(1.0, 4.0, 0.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6), h
    (0.9, 4.0)
    """

    lr: float = number(3e-3, low=0)
    beta1: float = number(0.95, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.99, low=0, below=1, advice="With 1 the average would never learn.")
    gamma: float = number(0.025, low=0)
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "v", "h")
    bounds = {"v": (0, math.inf)}
    space = {
        "lr": (1e-4, 1e-1),
        "1 - beta1": (1e-2, 3e-1),
        "gamma": (1e-3, 1e-1),
        "weight_decay": (1e-4, 1e-1),
    }

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        return dict(
            push=self.gamma * self.beta1 / (1 - self.beta1),
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            keep=1 - self.lr * self.weight_decay,
            step=self.lr / left_to_average(self.beta1, step),
            root=1 / math.sqrt(left_to_average(self.beta2, step)),
            eps=self.eps,
        )

    @staticmethod
    def update(w, g, m, v, h, push, decay1, gain1, decay2, gain2, keep, step, root, eps):
        """One weight, one step."""
        c = g + push * (g - h)
        c = c / maximum(norm(c), 1.0)
        m = decay1 * m + gain1 * c
        v = decay2 * v + gain2 * c * c
        w = keep * w - step * m / (sqrt(v) * root + eps)
        h = g
        return w, m, v, h
