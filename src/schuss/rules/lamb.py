"""LAMB: Adam's step, as long as the weights that it moves.

Source: You, Li, Reddi and others 2020, "Large batch optimization for deep learning", algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, norm, number, option, sqrt, where


@dataclass(frozen=True, kw_only=True)
class LAMB(Rule):
    r"""Step along Adam's direction, by a length in proportion to the norm of the whole weight tensor.

    At step t = 1, 2, ... a weight w with gradient g moves by

        m ← β₁ m + (1 − β₁) g             average gradient
        v ← β₂ v + (1 − β₂) g²            average squared gradient
        m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)
        u = m̂ / (√v̂ + ε) + λ w
        w ← w − η ‖w‖ / ‖u‖ u             the norms are those of the tensor; where one is 0: w ← w − η u

    | here           | paper | units      | domain | meaning                                              |
    |----------------|-------|------------|--------|------------------------------------------------------|
    | `lr`           | η     | none       | ≥ 0    | length of a step, over ‖w‖                           |
    | `beta1`        | β₁    | none       | [0, 1) | memory of m: 1/(1 − β₁) steps                        |
    | `beta2`        | β₂    | none       | [0, 1) | memory of v: 1/(1 − β₂) steps                        |
    | `eps`          | ε     | of g       | ≥ 0    | gradients smaller than this move w less              |
    | `weight_decay` | λ     | 1/w        | ≥ 0    | pull towards 0, as a part of u                       |
    | `always_adapt` |       |            |        | False: without `weight_decay` the ratio of norms is 1 |

    State: m and v. Two passes over memory.

    Where implementations differ: the paper lets a function φ bound ‖w‖, and uses φ(z) = z as here; its first version
    had no bias correction. timm and Apex adapt only weights with decay (`always_adapt=False`) and clip all gradients
    together to norm 1 (`max_norm=1`). Optax adapts always.

    >>> rule = LAMB(lr=0.1, weight_decay=0)
    >>> w, m, v = rule.update(2.0, 3.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)
    1.8
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-6, low=0)
    weight_decay: float = number(1e-2, low=0)
    always_adapt: bool = option(True)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "v")
    bounds = {"v": (0, math.inf)}
    space = {
        "lr": (1e-4, 1e-1),
        "1 - beta1": (1e-2, 3e-1),
        "1 - beta2": (1e-4, 1e-1),
        "weight_decay": (1e-4, 1e-1),
    }

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        return dict(
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            debias=1 / left_to_average(self.beta1, step),
            root=1 / math.sqrt(left_to_average(self.beta2, step)),
            eps=self.eps,
            decay=self.weight_decay,
            adapt=float(self.always_adapt or self.weight_decay > 0),
            lr=self.lr,
        )

    @staticmethod
    def update(w, g, m, v, decay1, gain1, decay2, gain2, debias, root, eps, decay, adapt, lr):
        """One weight, one step."""
        m = decay1 * m + gain1 * g
        v = decay2 * v + gain2 * g * g
        u = debias * m / (sqrt(v) * root + eps) + decay * w
        size = norm(w)
        length = norm(u)
        fixed = (adapt == 0.0) | (size == 0.0) | (length == 0.0)
        w = w - lr * where(fixed, 1.0, size / where(fixed, 1.0, length)) * u
        return w, m, v
