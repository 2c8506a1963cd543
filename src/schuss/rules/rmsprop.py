"""RMSProp: AdaGrad that forgets.

Sources: Tieleman and Hinton 2012, lecture 6.5; Graves 2013, equations 38 to 41 (centred, with momentum).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, choice, maximum, number, option, sqrt


@dataclass(frozen=True, kw_only=True)
class RMSprop(Rule):
    r"""Step down the gradient, measured in units of its recent typical size.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay
        v ← α v + (1 − α) g²              average squared gradient
        a ← α a + (1 − α) g               average gradient, if centred: then √(v − a²) stands for √v
        w ← w − η g / (√v + ε)            or, with momentum, b ← μ b + g / (√v + ε) and w ← w − η b

    | here                 | paper | units  | domain | meaning                                              |
    |----------------------|-------|--------|--------|------------------------------------------------------|
    | `lr`                 | η     | of w   | ≥ 0    | how far a gradient of typical size moves w           |
    | `alpha`              | α (β) | none   | [0, 1] | memory of v: 1/(1 − α) steps                         |
    | `eps`                | ε     | of g   | ≥ 0    | gradients smaller than this move w less              |
    | `weight_decay`       | λ     | of g/w | ≥ 0    | pull towards 0                                       |
    | `momentum`           | μ     | none   | ≥ 0    | memory of b: 1/(1 − μ) steps                         |
    | `centered`           |       |        |        | divide by the deviation instead of the size          |
    | `eps_position`       |       |        |        | "outside" √v + ε; "inside" √(v + ε)                  |
    | `lr_inside_velocity` |       |        |        | b ← μ b + η g / (√v + ε), w ← w − b, as TensorFlow   |

    State: v; a if centred; b with momentum.

    Where implementations differ: α is 0.99 (PyTorch) or 0.9 (Keras, Optax, most lecture notes); ε stands outside the
    root (PyTorch) or inside (TensorFlow, Optax, lecture notes); TensorFlow 1 started v at 1. Rounding can make v − a² a
    little negative: Schuss takes 0 there, PyTorch's root is NaN.

    >>> rule = RMSprop(lr=0.1, alpha=0.75)
    >>> w, v = rule.update(1.0, 2.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6), v
    (0.8, 1.0)
    """

    lr: float = number(1e-2, low=0)
    alpha: float = number(0.99, low=0, high=1, advice="It is the weight of the past.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)
    momentum: float = number(0.0, low=0)
    centered: bool = option(False)
    eps_position: str = choice("outside", "inside")
    lr_inside_velocity: bool = option(False)

    variants = {
        "": ("v",),
        "momentum": ("v", "b"),
        "centered": ("v", "a"),
        "centered_momentum": ("v", "b", "a"),
    }
    bounds = {"v": (0, math.inf)}

    @property
    def variant(self) -> str:
        """Centring and momentum each remember one number more."""
        return "_".join(["centered"] * self.centered + ["momentum"] * (self.momentum > 0))

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; the same at every step."""
        inside = self.eps_position == "inside"
        scalars = dict(
            l2=self.weight_decay,
            decay=self.alpha,
            gain=1 - self.alpha,
            eps_in=self.eps if inside else 0.0,
            eps=0.0 if inside else self.eps,
        )
        if not self.momentum:
            return scalars | dict(lr=self.lr)
        enters, leaves = (self.lr, 1.0) if self.lr_inside_velocity else (1.0, self.lr)
        return scalars | dict(momentum=self.momentum, enters=enters, leaves=leaves)

    @staticmethod
    def update(w, g, v, l2, decay, gain, eps_in, eps, lr):
        """One weight, one step."""
        g = g + l2 * w
        v = decay * v + gain * g * g
        w = w - lr * g / (sqrt(v + eps_in) + eps)
        return w, v

    @staticmethod
    def update_momentum(w, g, v, b, l2, decay, gain, eps_in, eps, momentum, enters, leaves):
        """One weight, one step, with a velocity."""
        g = g + l2 * w
        v = decay * v + gain * g * g
        b = momentum * b + enters * g / (sqrt(v + eps_in) + eps)
        w = w - leaves * b
        return w, v, b

    @staticmethod
    def update_centered(w, g, v, a, l2, decay, gain, eps_in, eps, lr):
        """One weight, one step, measured against the deviation of its gradient."""
        g = g + l2 * w
        v = decay * v + gain * g * g
        a = decay * a + gain * g
        w = w - lr * g / (sqrt(maximum(v - a * a, 0.0) + eps_in) + eps)
        return w, v, a

    @staticmethod
    def update_centered_momentum(w, g, v, b, a, l2, decay, gain, eps_in, eps, momentum, enters, leaves):
        """One weight, one step, centred and with a velocity."""
        g = g + l2 * w
        v = decay * v + gain * g * g
        a = decay * a + gain * g
        b = momentum * b + enters * g / (sqrt(maximum(v - a * a, 0.0) + eps_in) + eps)
        w = w - leaves * b
        return w, v, b, a
