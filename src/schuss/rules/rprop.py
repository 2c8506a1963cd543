"""Rprop: only the sign of a gradient counts, for full batches.

Source: Riedmiller and Braun 1993; Igel and Hüsken 2000 (the variant without weight backtracking, Rprop⁻ with a pause).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.rule import Rule, number, sign, where


@dataclass(frozen=True, kw_only=True)
class Rprop(Rule):
    r"""Step by a length of the weight's own, which grows while the gradient keeps its sign.

    At each step a weight w with gradient g, and the gradient h of the step before, moves by

        if g h > 0:  d ← min(η₊ d, d_max)
        if g h < 0:  d ← max(η₋ d, d_min),  g ← 0           overshot: shorten, and pause once
        w ← w − d sign(g),  h ← g

    | here            | paper | units | domain | meaning                              |
    |-----------------|-------|-------|--------|--------------------------------------|
    | `lr`            | Δ₀    | of w  | ≥ 0    | the first length                     |
    | `eta_minus`     | η₋    | none  | (0, 1) | how a length shrinks                 |
    | `eta_plus`      | η₊    | none  | > 1    | how a length grows                   |
    | `step_size_min` | Δ_min | of w  | ≥ 0    | the least length                     |
    | `step_size_max` | Δ_max | of w  | ≥ 0    | the greatest length                  |

    State: h, the last gradient, and d, the length.

    Mini-batches change signs by their noise alone: give this rule full batches.

    >>> rule = Rprop(lr=0.1)
    >>> rule.update(1.0, 2.0, 0.0, 0.1, **rule.coefficients(step=1))
    (0.9, 2.0, 0.1)
    """

    lr: float = number(1e-2, low=0)
    eta_minus: float = number(0.5, above=0, below=1)
    eta_plus: float = number(1.2, above=1)
    step_size_min: float = number(1e-6, low=0)
    step_size_max: float = number(50.0, low=0)

    tuples = {"etas": ("eta_minus", "eta_plus"), "step_sizes": ("step_size_min", "step_size_max")}
    state = ("h", "d")
    bounds = {"d": (0, math.inf)}

    def check(self) -> None:
        """The least length cannot exceed the greatest."""
        if self.step_size_min > self.step_size_max:
            raise ValueError(
                f"step_size_min={self.step_size_min!r} is more than step_size_max={self.step_size_max!r}. "
                "Try step_sizes=(1e-6, 50)."
            )

    def initial(self) -> dict[str, float]:
        """Every weight starts with the same length."""
        return {"d": self.lr}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; the same at every step."""
        return dict(
            shrink=self.eta_minus,
            grow=self.eta_plus,
            shortest=self.step_size_min,
            longest=self.step_size_max,
        )

    @staticmethod
    def update(w, g, h, d, shrink, grow, shortest, longest):
        """One weight, one step."""
        agrees = g * h
        d = d * where(agrees > 0.0, grow, where(agrees < 0.0, shrink, 1.0))
        d = where(d < shortest, shortest, where(d > longest, longest, d))
        g = where(agrees < 0.0, 0.0, g)
        w = w - d * sign(g)
        return w, g, d
