"""Schedule-Free: an average of the weights instead of a rate that falls.

Sources: Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky 2024, "The road less scheduled", equations 3 to 5 and
algorithm 1; RAdam's rectification of the rate: Liu and others 2020, and the authors' package `schedulefree`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, number, option, sqrt, where


@dataclass(frozen=True, kw_only=True)
class _ScheduleFree(Rule):
    r"""What the three have in common: the iterates z, their average x, and the weights y in between.

    | here              | paper | units | domain | meaning                                                   |
    |-------------------|-------|-------|--------|-----------------------------------------------------------|
    | `weight_decay`    | λ     | of u/w| ≥ 0    | pull towards 0                                            |
    | `warmup_steps`    | T_w   | steps | ≥ 0    | the rate rises over so many steps                         |
    | `r`               | r     | none  | ≥ 0    | later steps count more in the average: as t^r             |
    | `weight_lr_power` |       | none  | ≥ 0    | and steps at a larger rate: as the largest one to this    |
    """

    weight_decay: float = number(0.0, low=0)
    warmup_steps: float = number(0.0, low=0)
    r: float = number(0.0, low=0)
    weight_lr_power: float = number(2.0, low=0)

    scalars = ("weight_sum", "fastest")
    precise = ("z",)
    bounds = {"v": (0, math.inf), "weight_sum": (0, math.inf), "fastest": (0, math.inf)}

    def averaging(
        self, step: int, rate: float, beta: float, weight_sum: float, fastest: float
    ) -> dict[str, float]:
        """The scalars of one step at this rate; `toward` is c, the new iterate's part of the average."""
        fastest = max(fastest, rate)
        weight = step**self.r * fastest**self.weight_lr_power
        weight_sum += weight
        toward = weight / weight_sum if weight_sum else 0.0
        return dict(
            start=float(step == 1),
            decay=self.weight_decay,
            toward=toward,
            rate_y=rate * (1 - beta * (1 - toward)),
            rate_z=rate,
            weight_sum=weight_sum,
            fastest=fastest,
        )

    def warm(self, rate: float, step: int) -> float:
        """The rate of this step, while it rises."""
        return rate * min(1.0, step / self.warmup_steps) if self.warmup_steps else rate


def _average(w: Any, z: Any, beta: float) -> Any:
    """x, from y = (1 − β) z + β x."""
    return w + (1 - 1 / beta) * (z - w)


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeSGD(_ScheduleFree):
    r"""Step along the gradient at a constant rate; evaluate the average of where that leads.

    At step t = 1, 2, ... a weight w (y of the paper) with gradient g moves by

        u = g + λ w
        s ← s + tʳ max(η)²                what all steps weigh so far, c = tʳ max(η)² / s this one
        w ← w + c (z − w) − η (1 − β (1 − c)) u
        z ← z − η u                       z is w at first

    The weights to evaluate are x = w + (1 − 1/β) (z − w), an average of all z: `with optimizer.averaged()`.

    | here       | paper | units  | domain | meaning                                                       |
    |------------|-------|--------|--------|---------------------------------------------------------------|
    | `lr`       | γ     | of w/g | ≥ 0    | how far a unit gradient moves z; ten times SGD's, and more     |
    | `momentum` | β     | none   | (0, 1) | how near the weights stay to x; 0 would be plain averaging    |

    State: z, one number per weight.

    >>> rule = ScheduleFreeSGD(lr=0.5)
    >>> scalars = rule.coefficients(step=1)
    >>> scalars.pop("weight_sum"), scalars.pop("fastest")
    (0.25, 0.5)
    >>> w, z = rule.update(1.0, 2.0, 0.0, **scalars)
    >>> w, z
    (0.0, 0.0)
    """

    lr: float = number(1.0, low=0)
    momentum: float = number(0.9, above=0, below=1, advice="Try 0.9.")

    state = ("z",)
    space = {"lr": (1e-2, 1e2), "1 - momentum": (1e-2, 3e-1), "weight_decay": (1e-6, 1e-2)}

    def coefficients(self, step: int, weight_sum: float = 0.0, fastest: float = 0.0) -> dict[str, float]:
        """The scalars of one step."""
        return self.averaging(step, self.warm(self.lr, step), self.momentum, weight_sum, fastest)

    def evaluated(self, w: Any, *slots: Any) -> Any:
        """The average x of all z."""
        return _average(w, slots[0], self.momentum)

    @staticmethod
    def update(w, g, z, start, decay, toward, rate_y, rate_z):
        """One weight, one step."""
        z = where(start > 0.0, w, z)
        u = g + decay * w
        w = w + toward * (z - w) - rate_y * u
        z = z - rate_z * u
        return w, z


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(_ScheduleFree):
    r"""Step along the gradient over its typical size, at a constant rate; evaluate the average of where that leads.

    At step t = 1, 2, ... a weight w (y of the paper) with gradient g moves by

        v ← β₂ v + (1 − β₂) g²,  v̂ = v / (1 − β₂ᵗ)
        u = g / (√v̂ + ε) + λ w
        s ← s + tʳ max(η)²                what all steps weigh so far, c = tʳ max(η)² / s this one
        w ← w + c (z − w) − η (1 − β₁ (1 − c)) u
        z ← z − η u                       z is w at first

    The weights to evaluate are x = w + (1 − 1/β₁) (z − w), an average of all z: `with optimizer.averaged()`.

    | here    | paper | units | domain | meaning                                                           |
    |---------|-------|-------|--------|-------------------------------------------------------------------|
    | `lr`    | γ     | of w  | ≥ 0    | how far a steady gradient moves z                                 |
    | `beta1` | β₁    | none  | (0, 1) | how near the weights stay to x                                    |
    | `beta2` | β₂    | none  | [0, 1) | memory of v: 1/(1 − β₂) steps                                     |
    | `eps`   | ε     | of g  | ≥ 0    | gradients smaller than this move w less                           |

    State: z and v: no more than AdamW's.

    Where implementations differ: the paper's algorithm multiplies γ by √(1 − β₂ᵗ) and leaves v uncorrected, the
    authors' package and Schuss correct v, as Adam does.

    >>> rule = ScheduleFreeAdamW(lr=0.5)
    >>> scalars = rule.coefficients(step=1)
    >>> scalars.pop("weight_sum"), scalars.pop("fastest")
    (0.25, 0.5)
    >>> w, z, v = rule.update(1.0, 2.0, 0.0, 0.0, **scalars)
    >>> round(w, 6), round(z, 6)
    (0.5, 0.5)
    """

    lr: float = number(2.5e-3, low=0)
    beta1: float = number(0.9, above=0, below=1, advice="Try 0.9.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-8, low=0)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("z", "v")
    space = {
        "lr": (1e-4, 1e-1),
        "1 - beta1": (1e-2, 3e-1),
        "1 - beta2": (1e-4, 1e-1),
        "weight_decay": (1e-4, 1e-1),
    }

    def coefficients(self, step: int, weight_sum: float = 0.0, fastest: float = 0.0) -> dict[str, float]:
        """The scalars of one step."""
        found = self.averaging(step, self.warm(self.lr, step), self.beta1, weight_sum, fastest)
        root = 1 / math.sqrt(left_to_average(self.beta2, step))
        return found | dict(decay2=self.beta2, gain2=1 - self.beta2, root=root, eps=self.eps)

    def evaluated(self, w: Any, *slots: Any) -> Any:
        """The average x of all z."""
        return _average(w, slots[0], self.beta1)

    @staticmethod
    def update(w, g, z, v, start, decay, toward, rate_y, rate_z, decay2, gain2, root, eps):
        """One weight, one step."""
        z = where(start > 0.0, w, z)
        v = decay2 * v + gain2 * g * g
        u = g / (where(root > 0.0, sqrt(v) * root, 0.0) + eps) + decay * w
        w = w + toward * (z - w) - rate_y * u
        z = z - rate_z * u
        return w, z, v


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeRAdam(ScheduleFreeAdamW):
    r"""Schedule-Free AdamW whose rate rises as the typical size of the gradient becomes known: no warm-up to tune.

    At step t = 1, 2, ... the rate is η r, with RAdam's rectification

        ρ∞ = 2/(1 − β₂) − 1,  ρ = ρ∞ − 2 t β₂ᵗ / (1 − β₂ᵗ)
        r = √((ρ − 4)(ρ − 2) ρ∞ / ((ρ∞ − 4)(ρ∞ − 2) ρ))     where ρ > 4

    and all else is `ScheduleFreeAdamW`. Where ρ ≤ 4, in the first steps, nothing moves; with
    `silent_sgd_phase=False` u = g + λ w there, at the rate η.

    | here               | paper | units | domain | meaning                            |
    |--------------------|-------|-------|--------|------------------------------------|
    | `silent_sgd_phase` |       |       |        | nothing moves in the first steps   |

    >>> rule = ScheduleFreeRAdam(lr=0.5)
    >>> scalars = rule.coefficients(step=1)
    >>> scalars.pop("weight_sum"), scalars.pop("fastest")
    (0.0, 0.0)
    >>> w, z, v = rule.update(1.0, 2.0, 0.0, 0.0, **scalars)
    >>> w, z
    (1.0, 1.0)
    """

    silent_sgd_phase: bool = option(True)

    def coefficients(self, step: int, weight_sum: float = 0.0, fastest: float = 0.0) -> dict[str, float]:
        """The scalars of one step; before rectification the denominator is eps = 1, without √v."""
        remaining = left_to_average(self.beta2, step)
        longest = 2 / (1 - self.beta2) - 1
        length = longest - 2 * step * (1 - remaining) / remaining
        rate, rectified = self.warm(self.lr, step), length > 4
        if rectified:
            rate *= math.sqrt((length - 4) * (length - 2) * longest)
            rate /= math.sqrt((longest - 4) * (longest - 2) * length)
        elif self.silent_sgd_phase:
            rate = 0.0
        found = self.averaging(step, rate, self.beta1, weight_sum, fastest)
        root, eps = (1 / math.sqrt(remaining), self.eps) if rectified else (0.0, 1.0)
        return found | dict(decay2=self.beta2, gain2=1 - self.beta2, root=root, eps=eps)
