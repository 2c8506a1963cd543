"""ASGD: gradient descent with a falling rate, whose average path is the answer.

Source: Polyak and Juditsky 1992; Bottou 2010, section 5 (the rate and the start of averaging).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, number


@dataclass(frozen=True, kw_only=True)
class ASGD(Rule):
    r"""Step down the gradient at a falling rate, and average the weights.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay
        w ← (1 − Λ ηₜ) w − ηₜ g,          ηₜ = η / (1 + Λ η (t − 1))^α
        x ← x + μₜ (w − x),               μₜ = 1 / max(1, t − 1 − t₀)

    The average x is state to be read (`ax` in PyTorch); the gradient is taken at w.

    | here           | paper | units  | domain | meaning                                      |
    |----------------|-------|--------|--------|----------------------------------------------|
    | `lr`           | η     | of w/g | ≥ 0    | the first rate                               |
    | `lambd`        | Λ     | of g/w | ≥ 0    | decay of w, and of the rate                  |
    | `alpha`        | α     | none   | finite | power by which the rate falls                |
    | `t0`           | t₀    | steps  | finite | when averaging starts                        |
    | `weight_decay` | λ     | of g/w | ≥ 0    | pull towards 0                               |

    State: x; of a whole tensor, eta and mu, the rate of the next step and its weight in the average.

    >>> rule = ASGD(lr=0.5, lambd=0)
    >>> scalars = rule.coefficients(step=1, eta=0.5, mu=1.0)
    >>> scalars.pop("eta"), scalars.pop("mu")
    (0.5, 1.0)
    >>> rule.update(1.0, 1.0, 0.0, **scalars)
    (0.5, 0.5)
    """

    lr: float = number(1e-2, low=0)
    lambd: float = number(1e-4, low=0, advice="Below 0 the rate would grow without bound.")
    alpha: float = number(0.75)
    t0: float = number(1e6)
    weight_decay: float = number(0.0, low=0)

    state = ("x",)
    scalars = ("eta", "mu")
    bounds = {"eta": (0, math.inf), "mu": (0, 1)}

    def initial(self) -> dict[str, float]:
        """The first step is at the full rate, and its weights are the first average."""
        return {"eta": self.lr, "mu": 1.0}

    def coefficients(self, step: int, eta: float, mu: float) -> dict[str, float]:
        """The scalars of one step; the rate of the next, and its weight in the average."""
        return dict(
            l2=self.weight_decay,
            keep=1 - self.lambd * eta,
            step=eta,
            stay=1 - mu,
            share=mu,
            eta=self.lr / (1 + self.lambd * self.lr * step) ** self.alpha,
            mu=1 / max(1.0, step - self.t0),
        )

    @staticmethod
    def update(w, g, x, l2, keep, step, stay, share):
        """One weight, one step."""
        g = g + l2 * w
        w = keep * w - step * g
        x = stay * x + share * w
        return w, x
