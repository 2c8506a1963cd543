"""ADOPT: Adam that measures a gradient by those before it, and so converges with any β₂.

Source: Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa and Matsuo 2024, algorithm 1 and
its clipped form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, maximum, minimum, number, option, sqrt, where


@dataclass(frozen=True, kw_only=True)
class ADOPT(Rule):
    r"""Step along an average of gradients, each first measured by the size of those before it.

    The first step moves nothing and begins v ← g². At step t = 2, 3, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay (decoupled: w ← (1 − η λ) w instead)
        x = g / max(√v, ε)                in units of the gradients before
        x ← max(−c, min(c, x)),           c = (t − 1)^¼
        m ← β₁ m + (1 − β₁) x             average of these
        w ← w − η m
        v ← β₂ v + (1 − β₂) g²            average squared gradient

    | here           | paper | units  | domain | meaning                                   |
    |----------------|-------|--------|--------|-------------------------------------------|
    | `lr`           | α     | of w   | ≥ 0    | how far a steady gradient moves w         |
    | `beta1`        | β₁    | none   | [0, 1) | memory of m: 1/(1 − β₁) steps             |
    | `beta2`        | β₂    | none   | [0, 1) | memory of v: 1/(1 − β₂) steps             |
    | `eps`          | ε     | of g   | ≥ 0    | the least size                            |
    | `weight_decay` | λ     | of g/w | ≥ 0    | pull towards 0                            |
    | `clip`         | c     |        |        | hold x within ±c                          |
    | `decoupled_weight_decay` | |    |        | decay w by η λ instead of adding λ w to g |

    State: m and v. A gradient that is infinite stops its weight for good, as v is then infinite too.

    Where implementations differ: algorithm 1 has no c (`clip=False`) and can diverge where the first gradients are
    nearly 0. The authors' code has c since its second version, any function of the step (`clip_lambda`). There, in
    Optax and in Schuss c = 1 at the first step that moves; pytorch_optimizer counts one step more, and its decoupled
    decay begins at the step that moves nothing.

    >>> rule = ADOPT(lr=0.1)
    >>> w, m, v = rule.update(1.0, 2.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> w, m, v
    (1.0, 0.0, 4.0)
    >>> w, m, v = rule.update(w, 2.0, m, v, **rule.coefficients(step=2))
    >>> round(w, 6)
    0.99
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.9999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-6, low=0)
    weight_decay: float = number(0.0, low=0)
    clip: bool = option(True)
    decoupled_weight_decay: bool = option(False)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "v")
    bounds = {"v": (0, math.inf)}
    space = {"lr": (6.32e-5, 1.58e-2), "1 - beta1": (2e-2, 0.5), "weight_decay": (1e-7, 5e-5)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; at the first nothing moves but v, which becomes g²."""
        moves, decoupled = step > 1, self.decoupled_weight_decay
        lr, beta1, beta2 = (self.lr, self.beta1, self.beta2) if moves else (0.0, 1.0, 0.0)
        return dict(
            l2=0.0 if decoupled else self.weight_decay,
            keep=1 - lr * self.weight_decay if decoupled else 1.0,
            eps=self.eps if moves else 1.0,
            most=max(step - 1, 1) ** 0.25 if self.clip else 0.0,
            decay1=beta1,
            gain1=1 - beta1,
            lr=lr,
            decay2=beta2,
            gain2=1 - beta2,
        )

    @staticmethod
    def update(w, g, m, v, l2, keep, eps, most, decay1, gain1, lr, decay2, gain2):
        """One weight, one step; most = 0 says not to clip."""
        g = g + l2 * w
        x = g / maximum(sqrt(v), eps)
        x = where(most > 0, maximum(-most, minimum(most, x)), x)
        m = decay1 * m + gain1 * x
        w = keep * w - lr * m
        v = decay2 * v + gain2 * g * g
        return w, m, v
