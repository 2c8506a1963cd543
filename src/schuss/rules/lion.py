"""Lion: the sign of a blend of gradient and momentum.

Source: Chen, Liang, Huang, Real and others 2023, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from schuss.rules.rule import Rule, number, sign


@dataclass(frozen=True, kw_only=True)
class Lion(Rule):
    r"""Step by the same length in every weight, in the direction of a blend of momentum and gradient.

    At each step a weight w with gradient g moves by

        w ← (1 − η λ) w                   decay, outside the average
        w ← w − η sign(β₁ m + (1 − β₁) g)
        m ← β₂ m + (1 − β₂) g

    | here           | paper | units  | domain | meaning                                          |
    |----------------|-------|--------|--------|--------------------------------------------------|
    | `lr`           | η     | of w   | ≥ 0    | how far every step moves every weight            |
    | `beta1`        | β₁    | none   | [0, 1] | fraction of momentum in the step                 |
    | `beta2`        | β₂    | none   | [0, 1) | memory of m: 1/(1 − β₂) steps                    |
    | `weight_decay` | λ     | 1/η    | ≥ 0    | fraction of w lost per step, over `lr`           |

    State: m. The paper advises a learning rate three to ten times smaller than Adam's, and a decay as much larger.
    Where the blend is exactly 0 the weight stays.

    >>> rule = Lion(lr=0.1)
    >>> w, m = rule.update(1.0, 2.0, 0.0, **rule.coefficients(step=1))
    >>> w, round(m, 6)
    (0.9, 0.02)
    """

    lr: float = number(1e-4, low=0)
    beta1: float = number(0.9, low=0, high=1, advice="It is a fraction.")
    beta2: float = number(0.99, low=0, below=1, advice="With 1 the average would never learn.")
    weight_decay: float = number(0.0, low=0)

    tuples = {"betas": ("beta1", "beta2")}
    state = ("m",)

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step; the same at every step."""
        return dict(
            keep=1 - self.lr * self.weight_decay,
            blend_m=self.beta1,
            blend_g=1 - self.beta1,
            decay=self.beta2,
            gain=1 - self.beta2,
            lr=self.lr,
        )

    @staticmethod
    def update(w, g, m, keep, blend_m, blend_g, decay, gain, lr):
        """One weight, one step."""
        w = keep * w - lr * sign(blend_m * m + blend_g * g)
        m = decay * m + gain * g
        return w, m
