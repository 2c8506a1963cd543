"""Adafactor: Adam's sizes from one number for each row and column, and steps in proportion to the weights.

Source: Shazeer and Stern 2018, "Adafactor: Adaptive learning rates with sublinear memory cost", algorithms 4 to 6. What
PyTorch calls `d` and `eps` are its d, ε₁ and ε₂.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import (
    Rule,
    column_mean,
    machine_epsilon,
    maximum,
    mean,
    number,
    row_mean,
    sqrt,
)


@dataclass(frozen=True, kw_only=True)
class Adafactor(Rule):
    r"""Step along the gradient in units of its typical size, which rows and columns know; never far for its weights.

    At step t = 1, 2, ... a matrix w with gradient g moves by

        r ← β r + (1 − β) rowmean(g²)     for each row, with 1 − β = tᵏ
        c ← β c + (1 − β) colmean(g²)     for each column
        v = r c / max(mean(r), ε₁)        a typical g² of each element
        u = g / max(√v, ε₁)
        w ← w − η λ w − max(ε₂, rms(w)) min(η, 1/√t) u / max(1, rms(u) / d)

    and a vector with v ← β v + (1 − β) g². The rms are those of the tensor.

    | here           | paper | units | domain        | meaning                                                      |
    |----------------|-------|-------|---------------|--------------------------------------------------------------|
    | `lr`           | η (ρ) | none  | ≥ 0           | length of a step, over that of the weights                   |
    | `beta2_decay`  | k     | none  | ≤ 0           | how fast memory grows: step t has weight tᵏ in the averages  |
    | `eps1`         | ε₁    | of g  | None or ≥ 0   | gradients smaller than this move w less; None: see below     |
    | `eps2`         | ε₂    | of w  | ≥ 0           | weights smaller than this take steps as if they were so long |
    | `d`            | d     | none  | ≥ 1           | the largest rms of u                                         |
    | `weight_decay` | λ     | none  | ≥ 0           | pull towards 0 at each step, times the rate                  |

    State: r and c, a number for each row and column of the last two axes; v of a vector. Of a tensor with more axes
    each matrix has its own. With ε₁ = None it is the machine epsilon of the weight's dtype: 1.2e-7 for float32. Three
    passes over memory for a matrix, two for a vector.

    Where implementations differ: the paper adds ε₁ to g², and has no decay; here, as in PyTorch, it bounds what is
    divided by. PyTorch takes the ε₁ = None of a group's first weight for all of the group.

    >>> rule = Adafactor(lr=0.1, weight_decay=0)
    >>> w, v = rule.update(2.0, 3.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6), v
    (1.8, 9.0)
    """

    lr: float = number(1e-2, low=0)
    beta2_decay: float = number(-0.8, high=0, advice="Above 0 the weight of a step would grow past 1.")
    eps1: float | None = number(None, low=0, optional=True)
    eps2: float = number(1e-3, low=0)
    d: float = number(1.0, low=1)
    weight_decay: float = number(0.0, low=0)

    tuples = {"eps": ("eps1", "eps2")}
    variants = {"": ("v",), "factored": ("r", "c")}
    shapes = {"r": "row", "c": "column"}
    bounds = {"v": (0, math.inf), "r": (0, math.inf), "c": (0, math.inf)}
    space = {"lr": (1e-4, 1e-1), "weight_decay": (1e-4, 1e-1)}

    def variant_of(self, dimensions: int) -> str:
        """A vector has the state of a vector."""
        return "factored" if dimensions > 1 else ""

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        gain = float(step) ** self.beta2_decay
        return dict(
            decay=1 - gain,
            gain=gain,
            eps=self.eps1 or 0.0,
            epsilons=float(self.eps1 is None),
            keep=1 - self.lr * self.weight_decay,
            step=min(self.lr, 1 / math.sqrt(step)),
            smallest=self.eps2,
            longest=self.d,
        )

    @staticmethod
    def update(w, g, v, decay, gain, eps, epsilons, keep, step, smallest, longest):
        """One vector, one step."""
        v = decay * v + gain * g * g
        u = g / maximum(sqrt(v), eps + epsilons * machine_epsilon(w))
        length = sqrt(mean(u * u))
        size = sqrt(mean(w * w))
        w = keep * w - step * maximum(size, smallest) / maximum(length / longest, 1.0) * u
        return w, v

    @staticmethod
    def update_factored(w, g, r, c, decay, gain, eps, epsilons, keep, step, smallest, longest):
        """The same of a matrix."""
        r = decay * r + gain * row_mean(g * g)
        c = decay * c + gain * column_mean(g * g)
        least = eps + epsilons * machine_epsilon(w)
        v = r / maximum(column_mean(r), least) * c
        u = g / maximum(sqrt(v), least)
        length = sqrt(mean(u * u))
        size = sqrt(mean(w * w))
        w = keep * w - step * maximum(size, smallest) / maximum(length / longest, 1.0) * u
        return w, r, c
