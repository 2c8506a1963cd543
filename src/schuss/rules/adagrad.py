"""AdaGrad: every weight has a rate of its own, which only shrinks.

Source: Duchi, Hazan and Singer 2011, figure 1 (diagonal matrices).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, choice, number, sqrt


@dataclass(frozen=True, kw_only=True)
class Adagrad(Rule):
    r"""Step down the gradient, measured in units of all the gradients that this weight has seen.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay
        s ← s + g²                        sum of squared gradients
        w ← w − ηₜ g / (√s + ε),          ηₜ = η / (1 + (t − 1) γ)

    A weight that is seldom touched has a large learning rate, which is good for sparse gradients. But s only grows, so
    every rate falls as 1/√t, which can be too fast.

    | here                        | paper | units  | domain | meaning                                   |
    |-----------------------------|-------|--------|--------|-------------------------------------------|
    | `lr`                        | η     | of w   | ≥ 0    | the first step of every weight            |
    | `lr_decay`                  | γ     | none   | ≥ 0    | extra decay of the rate, 1/t in the end   |
    | `weight_decay`              | λ     | of g/w | ≥ 0    | pull towards 0                            |
    | `initial_accumulator_value` | δ     | of g²  | ≥ 0    | s before the first step                   |
    | `eps`                       | ε     | of g   | ≥ 0    | gradients smaller than this move w less   |
    | `eps_position`              |       |        |        | "outside" √s + ε; "inside" √(s + ε)       |

    State: s.

    Where implementations differ: ε stands outside the root (PyTorch) or inside (Optax, Keras, most lecture notes);
    s starts at 0 (the paper, PyTorch) or 0.1 (Optax, Keras).

    >>> rule = Adagrad(lr=0.1)
    >>> rule.update(1.0, 2.0, 0.0, **rule.coefficients(step=1))
    (0.900000000005, 4.0)
    """

    lr: float = number(1e-2, low=0)
    lr_decay: float = number(0.0, low=0)
    weight_decay: float = number(0.0, low=0)
    initial_accumulator_value: float = number(0.0, low=0)
    eps: float = number(1e-10, low=0)
    eps_position: str = choice("outside", "inside")

    state = ("s",)
    bounds = {"s": (0, math.inf)}

    def initial(self) -> dict[str, float]:
        """The sum may start above 0, which softens the first steps."""
        return {"s": self.initial_accumulator_value}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        inside = self.eps_position == "inside"
        return dict(
            l2=self.weight_decay,
            step=self.lr / (1 + (step - 1) * self.lr_decay),
            eps_in=self.eps if inside else 0.0,
            eps=0.0 if inside else self.eps,
        )

    @staticmethod
    def update(w, g, s, l2, step, eps_in, eps):
        """One weight, one step."""
        g = g + l2 * w
        s = s + g * g
        w = w - step * g / (sqrt(s + eps_in) + eps)
        return w, s
