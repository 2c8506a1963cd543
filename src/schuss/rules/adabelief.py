"""AdaBelief: Adam that divides by how far gradients stray from their average.

Source: Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris and Duncan 2020, algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, choice, number, option, sqrt


@dataclass(frozen=True, kw_only=True)
class AdaBelief(Rule):
    r"""Step along the average gradient, and the further the less the gradients stray from it.

    At step t = 1, 2, ... a weight w with gradient g moves by

        w ← (1 − η λ) w                   decay, outside the averages (not decoupled: g ← g + λ w instead)
        m ← β₁ m + (1 − β₁) g             average gradient
        s ← β₂ s + (1 − β₂) (g − m)² + ε  average squared deviation from it
        m̂ = m / (1 − β₁ᵗ), ŝ = s / (1 − β₂ᵗ)
        w ← w − η m̂ / (√ŝ + ε)

    | here           | paper | units    | domain | meaning                                                         |
    |----------------|-------|----------|--------|-----------------------------------------------------------------|
    | `lr`           | α     | of w     | ≥ 0    | how far a gradient of typical deviation moves w                 |
    | `beta1`        | β₁    | none     | [0, 1) | memory of m: 1/(1 − β₁) steps                                   |
    | `beta2`        | β₂    | none     | [0, 1) | memory of s: 1/(1 − β₂) steps                                   |
    | `eps`          | ε     | of g, g² | ≥ 0    | keeps w from leaping where gradients are steady                 |
    | `weight_decay` | λ     | 1/η      | ≥ 0    | fraction of w lost per step, over `lr`                          |
    | `eps_position` |       |          |        | "accumulated" in s; "once", ŝ = (s + ε)/(1 − β₂ᵗ); "outside" √ŝ |
    | `decoupled_weight_decay` | |      |        | False: add λ w to g instead                                     |

    State: m and s.

    Where implementations differ: the paper's algorithm 2, the authors' code, timm and Optax (whose `eps_root` is the
    ε inside) add ε to s at every step, so that s tends to ε / (1 − β₂) where gradients are steady. The paper's
    appendix and second preprint add it once, and to no average; the first preprint only outside the root. The
    authors' code also rectifies as RAdam does, by default (`rectify`); the paper and Schuss do not. It decouples the
    decay by default, as Schuss does; Optax has no decay.

    >>> rule = AdaBelief(lr=0.1)
    >>> w, m, s = rule.update(1.0, 2.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)  # the deviation is β₁ g
    0.888889
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    eps: float = number(1e-16, low=0)
    weight_decay: float = number(0.0, low=0)
    eps_position: str = choice("accumulated", "once", "outside")
    decoupled_weight_decay: bool = option(True)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m", "s")
    bounds = {"s": (0, math.inf)}
    space = {"lr": (6.32e-5, 1.58e-2), "1 - beta1": (2e-2, 0.5), "weight_decay": (5e-3, 1.0)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        decoupled = self.decoupled_weight_decay
        return dict(
            l2=0.0 if decoupled else self.weight_decay,
            keep=1 - self.lr * self.weight_decay if decoupled else 1.0,
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            eps_each=self.eps if self.eps_position == "accumulated" else 0.0,
            eps_once=self.eps if self.eps_position == "once" else 0.0,
            step=self.lr / left_to_average(self.beta1, step),
            root=1 / math.sqrt(left_to_average(self.beta2, step)),
            eps=self.eps,
        )

    @staticmethod
    def update(w, g, m, s, l2, keep, decay1, gain1, decay2, gain2, eps_each, eps_once, step, root, eps):
        """One weight, one step."""
        g = g + l2 * w
        w = keep * w
        m = decay1 * m + gain1 * g
        strays = g - m
        s = decay2 * s + gain2 * strays * strays + eps_each
        w = w - step * m / (sqrt(s + eps_once) * root + eps)
        return w, m, s
