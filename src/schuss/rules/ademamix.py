"""AdEMAMix: Adam with a second average, of gradients thousands of steps old.

Source: Pagliardini, Ablin and Grangier 2024, algorithm 1 and the schedules of α and β₃ in its section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schuss.rules.adam import left_to_average
from schuss.rules.rule import Rule, number, sqrt


def _memory(beta: float) -> float:
    """After how many steps a gradient's part in the average has fallen to 1/e."""
    return -1 / math.log(beta) if beta > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class AdEMAMix(Rule):
    r"""Step along a short and a long average of gradients, measured in units of their typical size.

    At step t = 1, 2, ... a weight w with gradient g moves by

        m₁ ← β₁ m₁ + (1 − β₁) g           average gradient
        m₂ ← β₃(t) m₂ + (1 − β₃(t)) g     average over a long past
        v ← β₂ v + (1 − β₂) g²            average squared gradient
        m̂₁ = m₁ / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)                 m₂ is not corrected: it begins small
        w ← w − η ((m̂₁ + α(t) m₂) / (√v̂ + ε) + λ w)

    Over the first `alpha_warmup` steps α(t) rises in a straight line from 0 to α; over the first `beta3_warmup` the
    memory −1 / log β₃(t) rises in a straight line from that of β₁ to that of β₃.

    | here           | paper  | units | domain | meaning                                            |
    |----------------|--------|-------|--------|----------------------------------------------------|
    | `lr`           | η      | of w  | ≥ 0    | how far a steady gradient moves w, at first        |
    | `beta1`        | β₁     | none  | [0, 1) | memory of m₁: 1/(1 − β₁) steps                     |
    | `beta2`        | β₂     | none  | [0, 1) | memory of v: 1/(1 − β₂) steps                      |
    | `beta3`        | β₃     | none  | [0, 1) | memory of m₂: 1/(1 − β₃) steps                     |
    | `alpha`        | α      | none  | ≥ 0    | weight of m₂ beside m₁; the paper advises 4 to 10  |
    | `beta3_warmup` | T of β₃ | steps | ≥ 0   | steps until β₃(t) = β₃; 0: from the first          |
    | `alpha_warmup` | T of α | steps | ≥ 0    | steps until α(t) = α; 0: from the first            |
    | `eps`          | ε      | of g  | ≥ 0    | gradients smaller than this move w less            |
    | `weight_decay` | λ      | 1/η   | ≥ 0    | fraction of w lost per step, over `lr`             |

    State: m₁, m₂ and v. The paper sets both warm-ups to the length of the run: without them a large α can diverge.

    Where implementations differ: α is 2 in the authors' code; Optax, pytorch_optimizer and Schuss have 5. The
    authors' code takes logarithms of β + 1e-8 to work out β₃(t), which lengthens the memory of 0.9999 by 1 part in 10
    000.

    >>> rule = AdEMAMix(lr=0.1)
    >>> w, m1, m2, v = rule.update(1.0, 2.0, 0.0, 0.0, 0.0, **rule.coefficients(step=1))
    >>> round(w, 6)  # 1 − 0.1 (1 + 5 · 0.0001)
    0.89995
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1, advice="With 1 the average would never learn.")
    beta2: float = number(0.999, low=0, below=1, advice="With 1 the average would never learn.")
    beta3: float = number(0.9999, low=0, below=1, advice="With 1 the average would never learn.")
    alpha: float = number(5.0, low=0)
    beta3_warmup: float = number(0.0, low=0, advice="0 is no warm-up.")
    alpha_warmup: float = number(0.0, low=0, advice="0 is no warm-up.")
    eps: float = number(1e-8, low=0)
    weight_decay: float = number(0.0, low=0)

    tuples = {"betas": ("beta1", "beta2", "beta3")}
    state = ("m1", "m2", "v")
    bounds = {"v": (0, math.inf)}
    space = {"lr": (6.32e-5, 1.58e-2), "1 - beta3": (1e-4, 1e-2), "weight_decay": (5e-3, 1.0)}

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step, with α and β₃ as far as their warm-ups have come."""
        beta3, alpha = self.beta3, self.alpha
        if step < self.alpha_warmup:
            alpha *= step / self.alpha_warmup
        if step < self.beta3_warmup:
            done = step / self.beta3_warmup
            memory = (1 - done) * _memory(min(self.beta1, beta3)) + done * _memory(beta3)
            beta3 = math.exp(-1 / memory) if memory > 0 else 0.0
        return dict(
            decay1=self.beta1,
            gain1=1 - self.beta1,
            decay3=beta3,
            gain3=1 - beta3,
            decay2=self.beta2,
            gain2=1 - self.beta2,
            step1=self.lr / left_to_average(self.beta1, step),
            step2=self.lr * alpha,
            root=1 / math.sqrt(left_to_average(self.beta2, step)),
            eps=self.eps,
            keep=1 - self.lr * self.weight_decay,
        )

    @staticmethod
    def update(w, g, m1, m2, v, decay1, gain1, decay3, gain3, decay2, gain2, step1, step2, root, eps, keep):
        """One weight, one step."""
        m1 = decay1 * m1 + gain1 * g
        m2 = decay3 * m2 + gain3 * g
        v = decay2 * v + gain2 * g * g
        w = keep * w - (step1 * m1 + step2 * m2) / (sqrt(v) * root + eps)
        return w, m1, m2, v
