"""Gradient descent, with momentum and Nesterov's look-ahead.

Sources: Polyak 1964 (momentum); Nesterov 1983; Sutskever, Martens, Dahl and Hinton 2013, equations 1 to 4;
Loshchilov and Hutter 2019, algorithm 1 (decoupled decay).
"""

from __future__ import annotations

from dataclasses import dataclass

from schuss.rules.rule import Rule, number, option


@dataclass(frozen=True, kw_only=True)
class SGD(Rule):
    r"""Step down the gradient, or down a running sum of gradients.

    At step t = 1, 2, ... a weight w with gradient g moves by

        g ← g + λ w                       L2 decay (decoupled: w ← (1 − η λ) w instead)
        v ← μ v + (1 − d) g               velocity; the first one is g, undampened
        w ← w − η v                       or, with Nesterov, w ← w − η (g + μ v)

    Without momentum there is no velocity: w ← w − η g. With `lr_inside_velocity` the rate multiplies the gradient
    as it enters the velocity, v ← μ v + η (1 − d) g and w ← w − v.

    | here                     | paper | units  | domain | meaning                                           |
    |--------------------------|-------|--------|--------|---------------------------------------------------|
    | `lr`                     | η (α) | of w/g | ≥ 0    | how far a unit gradient moves w                   |
    | `momentum`               | μ (ρ) | none   | ≥ 0    | memory of v: 1/(1 − μ) steps                      |
    | `dampening`              | d     | none   | finite | fraction of a gradient that v leaves out          |
    | `weight_decay`           | λ     | of g/w | ≥ 0    | pull towards 0                                    |
    | `nesterov`               |       |        |        | Nesterov's look-ahead along v                     |
    | `lr_inside_velocity`     |       |        |        | v holds steps, not gradients                      |
    | `decoupled_weight_decay` |       |        |        | decay w by η λ instead of adding λ w to g         |

    State: v, one number per weight, only with momentum.

    Where implementations differ: PyTorch and Optax apply the rate outside the velocity; Sutskever, Keras and most
    lecture notes (v ← ρ v − α g, w ← w + v) apply it inside. At a constant rate both are the same; when the rate
    falls, a velocity that holds steps goes on at the old rate for a while.

    >>> rule = SGD(lr=0.1, momentum=0.9)
    >>> rule.update_momentum(1.0, 2.0, 0.0, **rule.coefficients(step=1))
    (0.8, 2.0)
    """

    lr: float = number(1e-3, low=0)
    momentum: float = number(0.0, low=0)
    dampening: float = number(0.0)
    weight_decay: float = number(0.0, low=0)
    nesterov: bool = option(False)
    lr_inside_velocity: bool = option(False)
    decoupled_weight_decay: bool = option(False)

    variants = {"": (), "momentum": ("v",)}

    def check(self) -> None:
        """Nesterov's look-ahead needs a velocity that holds whole gradients."""
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening = 0, not momentum={self.momentum!r} and "
                f"dampening={self.dampening!r}. Try momentum=0.9, dampening=0."
            )

    @property
    def variant(self) -> str:
        """There is a velocity only with momentum."""
        return "momentum" if self.momentum else ""

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step: decay, what enters the velocity, and what leaves it."""
        decoupled = self.decoupled_weight_decay
        decay = dict(
            l2=0.0 if decoupled else self.weight_decay,
            keep=1 - self.lr * self.weight_decay if decoupled else 1.0,
        )
        if not self.momentum:
            return decay | dict(lr=self.lr)
        enters, leaves = (self.lr, 1.0) if self.lr_inside_velocity else (1.0, self.lr)
        return decay | dict(
            momentum=self.momentum,
            gain=enters * (1.0 if step == 1 else 1 - self.dampening),
            step_v=leaves * (self.momentum if self.nesterov else 1.0),
            step_g=self.lr if self.nesterov else 0.0,
        )

    @staticmethod
    def update(w, g, l2, keep, lr):
        """One weight, one step, no memory."""
        g = g + l2 * w
        w = keep * w - lr * g
        return (w,)

    @staticmethod
    def update_momentum(w, g, v, l2, keep, momentum, gain, step_v, step_g):
        """One weight, one step, with a velocity."""
        g = g + l2 * w
        v = momentum * v + gain * g
        w = keep * w - (step_v * v + step_g * g)
        return w, v
