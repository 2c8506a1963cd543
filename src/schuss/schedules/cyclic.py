"""Up and down for ever: the triangle.

Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.2. https://arxiv.org/abs/1506.01186
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

from schuss.errors import refusal
from schuss.schedules.schedule import UNSAID, Length, Parametric, Rate, Value, multiples


@dataclass(frozen=True, repr=False)
class Cyclic(Parametric):
    """From `start` to `turn` and back along straight lines, again and again.

        k = ⌊n/P⌋, φ = n/P − k                                which cycle, and where in it
        h = min(φ / (R/P), (1 − φ) / (1 − R/P))               the triangle
        value(n) = start + (turn − start) · h · shrink^k · rate^n

    | here         | paper      | units    | domain | meaning                                         |
    | `start`      | base_lr    | value    | finite | the value at both ends of a cycle               |
    | `turn`       | max_lr     | value    | finite | the value in the middle of the first cycle      |
    | `period`     | 2 stepsize | P, steps | > 0    | the length of a whole cycle, up and down        |
    | `turn_after` | stepsize   | R, steps | (0, P) | steps from `start` to `turn`; P/2 if left out   |
    | `shrink`     |            | none     | (0, 1] | multiplies the height after each cycle          |
    | `rate`       | gamma      | none     | (0, 1] | multiplies the height after each step           |
    | `steps`      |            | steps    | > 0    | optional horizon: constant after it             |

    Where implementations differ: torch's `CyclicLR` says the two halves, `step_size_up` and `step_size_down`;
    its mode "triangular2" is `shrink=0.5` and "exp_range" is `rate=gamma`. It cycles momentum too; here that
    is a `Cyclic` for momentum.

    >>> schedule = Cyclic(1e-4, 1e-2, period=200)
    >>> [round(schedule(n), 12) for n in (0, 50, 100, 150, 200)]
    [0.0001, 0.00505, 0.01, 0.00505, 0.0001]
    """

    start: Value
    turn: Value = 0.0
    _: KW_ONLY
    period: Length = UNSAID
    turn_after: Length = UNSAID
    shrink: Rate = 1.0
    rate: Rate = 1.0

    def _complete(self) -> None:
        if self.period is UNSAID:
            raise TypeError("Cyclic needs the length of a cycle, up and down: period=4000.")
        if self.turn_after is UNSAID:
            self._set("turn_after", self.period / 2)
        if self.turn_after >= self.period:
            raise refusal(
                "turn_after", self.turn_after, f"in (0, {self.period})", "The falling half needs steps too."
            )

    def _formula(self, n: float) -> float:
        cycle = math.floor(n / self.period)
        phase = n / self.period - cycle
        turning = self.turn_after / self.period
        height = min(phase / turning, (1 - phase) / (1 - turning))
        return self.start + (self.turn - self.start) * height * self.shrink**cycle * self.rate**n

    def _bends(self, last: float) -> Iterable[float]:
        return (begin + after for begin in multiples(self.period, last) for after in (0, self.turn_after))
