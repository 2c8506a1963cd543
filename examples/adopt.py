"""ADOPT (Taniguchi et al. 2024, algorithm 1). Race it: schuss race digits --entry examples/adopt.py:ADOPT"""

from dataclasses import dataclass

import schuss
from schuss.rules import Rule, maximum, minimum, number, sqrt, where


@dataclass(frozen=True, kw_only=True)
class ADOPT(Rule):
    """Step along an average of gradients, each first measured by the size of those before it.

    The first step only begins v ← g². From step t = 2 on, with c = (t − 1)^¼,

        m ← β₁ m + (1 − β₁) clip(g / max(√v, ε), −c, c)
        w ← w − η m
        v ← β₂ v + (1 − β₂) g²
    """

    lr: float = number(1e-3, low=0)
    beta1: float = number(0.9, low=0, below=1)
    beta2: float = number(0.9999, low=0, below=1)
    eps: float = number(1e-6, low=0)
    state = ("m", "v")
    tuples = {"betas": ("beta1", "beta2")}

    def coefficients(self, step):
        lr, b1, b2 = (self.lr, self.beta1, self.beta2) if step > 1 else (0.0, 1.0, 0.0)
        return dict(most=(step - 1) ** 0.25, lr=lr, eps=self.eps, b1=b1, gain1=1 - b1, b2=b2, gain2=1 - b2)

    @staticmethod
    def update(w, g, m, v, most, lr, eps, b1, gain1, b2, gain2):
        size = maximum(sqrt(v), eps)
        m = b1 * m + gain1 * maximum(-most, minimum(most, g / where(size > 0, size, 1)))
        return w - lr * m, m, b2 * v + gain2 * g * g


if __name__ == "__main__":
    bowl, options = lambda x: (x[0] - 1) ** 2 + 9 * x[1] ** 2, {"lr": 0.05}
    print(schuss.minimize(bowl, [0.0, 2.0], method=ADOPT, options=options).message)
