"""Adam, with AMSGrad.

Sources: Kingma and Ba 2015, algorithm 1 and the end of section 2 (ε̂); Reddi, Kale and Kumar 2018, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, choice, maximum, number, option, sqrt


def left_to_average(beta: float, step: int) -> float:
    """1 − βᵗ, exact also where βᵗ is near 1: the fraction of an average from zero that is data after t steps."""
    return -math.expm1(step * math.log(beta)) if beta > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Adam(Rule):
    r"""Step along the average gradient, measured in units of its own typical size.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay (decoupled: w ← (1 − η λ) w instead, which is AdamW)
        m ← β₁ m + (1 − β₁) g             average gradient
        v ← β₂ v + (1 − β₂) g²            average squared gradient
        m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)
        w ← w − η m̂ / (√v̂ + ε)

    AMSGrad divides by the largest v so far, p ← max(p, v), p̂ = p / (1 − β₂ᵗ), in place of v̂.

    | here           | paper | units | domain | meaning                                                |
    |----------------|-------|-------|--------|--------------------------------------------------------|
    | `lr`           | η (α) | of w  | ≥ 0    | how far a steady gradient moves w                      |
    | `beta1`        | β₁    | none  | [0, 1) | memory of m: 1/(1 − β₁) steps                          |
    | `beta2`        | β₂    | none  | [0, 1) | memory of v: 1/(1 − β₂) steps                          |
    | `eps`          | ε     | of g  | ≥ 0    | gradients smaller than this move w less                |
    | `weight_decay` | λ     | of g/w| ≥ 0    | pull towards 0, through the averages                   |
    | `amsgrad`      |       |       |        | never let the denominator shrink                       |
    | `eps_position` |       |       |        | "outside" √v̂ + ε; "inside" √(v̂ + ε); "uncorrected" ε̂ |
    | `decoupled_weight_decay` | |     |        | decay w by η λ instead of adding λ w to g              |

    State: m and v, and p with AMSGrad.

    Where implementations differ: ε is added after the correction (the paper's algorithm 1, PyTorch, Optax) or before
    it, as the ε̂ of the paper's section 2 (Keras, TensorFlow, PyTorch's SparseAdam): `eps_position="uncorrected"`.
    Optax's AMSGrad takes the largest corrected v; PyTorch and Keras, as here, correct the largest raw one.

    >>> rule = Adam(lr=0.1)
    >>> w, m, v = rule.update(1.0, 2.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)
    0.9
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)
    amsgrad: bool = option(False)
    eps_position: str = choice("outside", "inside", "uncorrected")
    decoupled_weight_decay: bool = option(False)

    tuples = {"betas": ("beta1", "beta2")}
    variants = {"": ("m", "v"), "amsgrad": ("m", "v", "p")}
    bounds = {"v": (0, math.inf), "p": (0, math.inf)}

    @property
    def variant(self) -> str:
        """AMSGrad remembers the largest v."""
        return "amsgrad" if self.amsgrad else ""

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step, once, in float64, whatever the weights are."""
        decoupled = self.decoupled_weight_decay
        correction1, correction2 = left_to_average(self.beta1, step), left_to_average(self.beta2, step)
        root = 1 / math.sqrt(correction2)  # √v̂ = √v · root
        return dict(
            l2=0.0 if decoupled else self.weight_decay,
            keep=1 - self.lr * self.weight_decay if decoupled else 1.0,
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            step=self.lr / correction1,
            root=root,
            eps_in=self.eps * correction2 if self.eps_position == "inside" else 0.0,
            eps={"outside": self.eps, "inside": 0.0, "uncorrected": self.eps * root}[self.eps_position],
        )

    @staticmethod
    def update(w, g, m, v, l2, keep, decay1, gain1, decay2, gain2, step, root, eps_in, eps):
        """One weight, one step. Compiled as it stands for CPU and GPU."""
        g = g + l2 * w
        w = keep * w
        m = decay1 * m + gain1 * g
        v = decay2 * v + gain2 * g * g
        w = w - step * m / (sqrt(v + eps_in) * root + eps)
        return w, m, v

    @staticmethod
    def update_amsgrad(w, g, m, v, p, l2, keep, decay1, gain1, decay2, gain2, step, root, eps_in, eps):
        """One weight, one step, dividing by the largest v so far."""
        g = g + l2 * w
        w = keep * w
        m = decay1 * m + gain1 * g
        v = decay2 * v + gain2 * g * g
        p = maximum(p, v)
        w = w - step * m / (sqrt(p + eps_in) * root + eps)
        return w, m, v, p
