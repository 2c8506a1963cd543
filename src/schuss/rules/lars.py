"""LARS: momentum whose rate follows the ratio of a tensor's norm to its gradient's.

Source: You, Gitman and Ginsburg 2017, "Large batch training of convolutional networks", equation 6 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from schuss.rules.rule import Rule, minimum, norm, number, option, where


@dataclass(frozen=True, kw_only=True)
class LARS(Rule):
    r"""Step along a velocity, at a rate for each tensor in proportion to the norm of its weights over its gradient's.

    At each step a weight w with gradient g moves by

        r = c ‖w‖ / (‖g‖ + λ ‖w‖ + ε)     the norms are those of the tensor; where ‖w‖ is 0: r = 1
        v ← μ v + r (g + λ w)             velocity
        w ← w − η v

    With `lr_inside_velocity` the rate multiplies what enters the velocity, v ← μ v + η r (g + λ w) and w ← w − v. With
    `trust_clip` no tensor's rate is above η: r ← min(r / η, 1) (LARC).

    | here                 | paper | units  | domain | meaning                                              |
    |----------------------|-------|--------|--------|------------------------------------------------------|
    | `lr`                 | γ (η) | none   | ≥ 0    | factor of every tensor's rate                        |
    | `momentum`           | m (μ) | none   | [0, 1) | memory of v: 1/(1 − μ) steps                         |
    | `weight_decay`       | β (λ) | of g/w | ≥ 0    | pull towards 0                                       |
    | `trust_coefficient`  | η (c) | none   | ≥ 0    | length of a step over ‖w‖, at lr = 1                 |
    | `eps`                |       | of g   | ≥ 0    | gradients shorter than this move w less              |
    | `trust_clip`         |       |        |        | never faster than momentum at rate `lr`              |
    | `lr_inside_velocity` |       |        |        | v holds steps, not gradients                         |
    | `always_adapt`       |       |        |        | False: without `weight_decay` r is 1                 |

    State: v. Two passes over memory.

    Where implementations differ: the paper applies the rate inside the velocity; timm and most others outside. timm
    adapts only weights with decay (`always_adapt=False`); many leave out biases and norms (give them a group with
    rule "SGD"). Optax divides by ‖g + λ w‖ in place of ‖g‖ + λ ‖w‖.

    >>> rule = LARS(lr=1.0, trust_coefficient=0.1, eps=0)
    >>> w, v = rule.update(2.0, 4.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)
    1.8
    """

    lr: float = number(1.0, low=0)
    momentum: float = number(0.9, low=0, below=1)
    weight_decay: float = number(0.0, low=0)
    trust_coefficient: float = number(1e-3, low=0)
    eps: float = number(1e-8, low=0)
    trust_clip: bool = option(False)
    lr_inside_velocity: bool = option(False)
    always_adapt: bool = option(True)

    state = ("v",)
    space = {"lr": (1e-1, 1e2), "1 - momentum": (1e-3, 1.0), "weight_decay": (1e-6, 1e-2)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; the same at every step."""
        enters, leaves = (self.lr, 1.0) if self.lr_inside_velocity else (1.0, self.lr)
        return dict(
            adapt=float(self.always_adapt or self.weight_decay > 0),
            trust=self.trust_coefficient,
            l2=self.weight_decay,
            eps=self.eps,
            clip=1 / self.lr if self.trust_clip and self.lr > 0 else 0.0,
            momentum=self.momentum,
            enters=enters,
            leaves=leaves,
        )

    @staticmethod
    def update(w, g, v, adapt, trust, l2, eps, clip, momentum, enters, leaves):
        """One weight, one step."""
        size = norm(w)
        length = norm(g) + l2 * size + eps
        fixed = (adapt == 0.0) | (size == 0.0) | (length == 0.0)
        r = where(fixed, 1.0, trust * size / where(fixed, 1.0, length))
        r = where(clip > 0.0, minimum(clip * r, 1.0), r)
        v = momentum * v + enters * r * (g + l2 * w)
        w = w - leaves * v
        return w, v
