"""The same factor at every step: forgetting at a steady rate, or growing through decades for a range test."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from schuss.errors import refusal
from schuss.schedules.schedule import UNSAID, Length, NotNegative, Parametric, Positive, Rate


@dataclass(frozen=True, repr=False)
class Exponential(Parametric):
    """Times `rate` at every step, smoothly; or along a geometric line from `start` to `end` in `steps`.

        value(n) = start · rate^(n / every), never below end        with `rate`
        value(n) = start^(1 − n/N) · end^(n/N)                      with `end` and `steps` instead

    | here    | units | domain | meaning                                                       |
    | `start` | value | > 0    | the value of the first step                                   |
    | `end`   | value | ≥ 0    | with `rate` a floor; without it the value from step N on      |
    | `rate`  | none  | (0, 1] | what `every` steps multiply by                                |
    | `every` | steps | > 0    | 1 step, or with `steps_per_epoch` 1 epoch                     |
    | `steps` | N     | > 0    | with `rate` an optional horizon; without it how long it takes |

    Without a rate it may grow, which is the lr range test: `Exponential(1e-7, 1, steps=100)`.

    Where implementations differ: torch's `ExponentialLR` counts whole epochs; `optax.exponential_decay` names
    `every` `transition_steps`, and with `staircase=True` is `StepDecay`.

    >>> round(Exponential(1e-3, rate=0.99)(100) / 1e-3, 12) == round(0.99**100, 12)
    True
    >>> [Exponential(1e-6, 1, steps=6)(n) for n in (0, 6, 100)]
    [1e-06, 1.0, 1.0]
    """

    start: Positive
    end: NotNegative = 0.0
    _: KW_ONLY
    rate: Rate = UNSAID
    every: Length = 1

    def _complete(self) -> None:
        if self.rate is UNSAID and not (self.end > 0 and self.length < float("inf")):
            raise TypeError(
                "Exponential needs rate=0.99, or an end above 0 and steps: (1e-3, 1e-5, steps=1000)."
            )
        if self.rate is not UNSAID and self.end > self.start:
            advice = "With a rate it only falls; to grow, leave rate out."
            raise refusal("end", self.end, f"in [0, {self.start}]", advice)

    def _formula(self, n: float) -> float:
        if self.rate is UNSAID:
            return self.start ** (1 - n / self.steps) * self.end ** (n / self.steps)
        return max(self.start * self.rate ** (n / self.every), self.end)
