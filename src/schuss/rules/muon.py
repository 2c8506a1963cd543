"""Muon: momentum for matrices, with all directions of equal length.

Sources: Jordan and others 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu, Su and others 2025,
"Muon is Scalable for LLM Training" (weight decay, and steps of AdamW's size).
"""

from __future__ import annotations

from dataclasses import dataclass

from schuss.errors import refusal
from schuss.rules.polynomials import POLYNOMIALS, QUINTIC, Polynomials
from schuss.rules.rule import Rule, choice, columns, maximum, number, option, orthogonal, rows, sqrt, where


@dataclass(frozen=True, kw_only=True)
class Muon(Rule):
    r"""Step along the average gradient of a matrix, stretched so that it moves equally far in each of its directions.

    At step t = 1, 2, ... a weight W with gradient G moves by

        B ← μ B + (1 − μ) G               average gradient
        N = (1 − μ) G + μ B               with Nesterov's momentum; N = B without
        O = U Vᵀ, where N = U Σ Vᵀ        nearly: Σ is driven to 1 by polynomials, from N / max(‖N‖, ε)
        W ← (1 − η λ) W − η s O           s = √max(1, rows / columns)

    | here            | paper   | units | domain    | meaning                                                  |
    |-----------------|---------|-------|-----------|----------------------------------------------------------|
    | `lr`            | η       | of w  | ≥ 0       | length of a step along each direction                    |
    | `weight_decay`  | λ       | 1/w   | ≥ 0       | pull towards 0, beside the gradient, by lr as it is      |
    | `momentum`      | μ       | none  | [0, 1)    | memory of B: 1/(1 − μ) steps                             |
    | `nesterov`      |         |       |           | step along N, in which G counts once more                |
    | `ns_a`          | a       | none  | finite    | of the polynomial a σ + b σ³ + c σ⁵                      |
    | `ns_b`          | b       | none  | finite    | of the same                                              |
    | `ns_c`          | c       | none  | finite    | of the same                                              |
    | `eps`           | ε       | of g  | > 0       | matrices of a smaller norm are not stretched to 1        |
    | `ns_steps`      | k       | none  | [1, 100)  | how often the polynomial is applied                      |
    | `adjust_lr_fn`  | s       |       |           | s: None and "original" as above; "match_rms_adamw"       |
    |                 |         |       |           | 0.2 √max(rows, columns); "spectral_unclamped"            |
    |                 |         |       |           | √(rows / columns)                                        |
    | `polynomials`   |         |       |           | "given": `ns_coefficients`, `ns_steps` times; or a       |
    |                 |         |       |           | published set in their place: see schuss.rules.polynomials |

    State: B. A weight of more than two axes, as a convolution's, is a matrix of its first axis and all others together.
    Weights of fewer have no directions: give them, embeddings and the last layer a group with a `rule` of their own.

    Keep B in float32, as is the default. What rounds B (`state_dtype` of "bfloat16" or "int8") adds a little of every
    direction, and O stretches that as it stretches the gradient: of a 64 × 128 matrix 20 steps in int8 came 14 % off
    where the gradient had all directions, and further off than they went where it had 16 of them.

    Where implementations differ: the paper sums gradients (B ← μ B + G) where this averages them, as PyTorch does; O
    is the same, but for ε. The paper takes 0.02 for η and no decay. Keras has the transposed matrices, and with them
    s. PyTorch multiplies in bfloat16, by which each step is 1 % off; here products are in float32 at least.

    >>> rule = Muon(lr=0.1, weight_decay=0, nesterov=False)
    >>> w, b = rule.update(2.0, 3.0, 0.0, **rule.coefficients(step=1))  # of a 1 × 1 matrix the sign
    >>> round(w, 6), round(b, 6)
    (1.9, 0.15)
    """

    lr: float = number(1e-3, low=0)
    weight_decay: float = number(0.1, low=0)
    momentum: float = number(0.95, low=0, below=1, advice="With 1 the average would never learn.")
    nesterov: bool = option(True)
    ns_a: float = number(QUINTIC[0])
    ns_b: float = number(QUINTIC[1])
    ns_c: float = number(QUINTIC[2])
    eps: float = number(1e-7, above=0)
    ns_steps: int = number(5, low=1, below=100)
    adjust_lr_fn: str | None = choice(None, "original", "match_rms_adamw", "spectral_unclamped")
    polynomials: str = choice("given", "quintic5", "polar_express", "quintic8")

    tuples = {"ns_coefficients": ("ns_a", "ns_b", "ns_c")}
    state = ("b",)
    space = {"lr": (2e-3, 2e-1), "1 - momentum": (1e-2, 3e-1), "weight_decay": (5e-3, 1.0)}

    def check(self) -> None:
        """Refuse a part of an iteration."""
        if self.ns_steps != int(self.ns_steps):
            raise refusal("ns_steps", self.ns_steps, "a whole number in [1, 100)")

    @property
    def iterations(self) -> Polynomials:
        """The polynomials that are applied, in their order."""
        if self.polynomials == "given":
            return ((self.ns_a, self.ns_b, self.ns_c),) * int(self.ns_steps)
        return POLYNOMIALS[self.polynomials]

    @property
    def smallest_norm(self) -> float:
        """What smaller norms are taken for."""
        return self.eps

    def coefficients(self, step: int) -> dict[str, float]:
        """The scalars of one step."""
        del step
        fresh = 1 - self.momentum
        return dict(
            decay=self.momentum,
            gain=fresh,
            ahead_g=fresh if self.nesterov else 0.0,
            ahead_b=self.momentum if self.nesterov else 1.0,
            keep=1 - self.lr * self.weight_decay,
            rms=0.2 if self.adjust_lr_fn == "match_rms_adamw" else 0.0,
            least=0.0 if self.adjust_lr_fn == "spectral_unclamped" else 1.0,
            lr=self.lr,
        )

    @staticmethod
    def update(w, g, b, decay, gain, ahead_g, ahead_b, keep, rms, least, lr):
        """One weight, one step."""
        b = decay * b + gain * g
        n = ahead_g * g + ahead_b * b
        longest = sqrt(maximum(rows(w), columns(w)))
        size = where(rms > 0.0, rms * longest, sqrt(maximum(rows(w) / columns(w), least)))
        w = keep * w - lr * size * orthogonal(n)
        return w, b
