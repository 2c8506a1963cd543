"""One over the root of time: the schedule of the first Transformer, called Noam.

Source: Vaswani et al., "Attention is all you need", 2017, equation 3. https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

from schuss.schedules.schedule import UNSAID, Length, LengthOr0, Parametric, Value, check_warmup


@dataclass(frozen=True, repr=False)
class InverseSqrt(Parametric):
    """Down with the root of time, for ever, after a straight rise if asked.

        value(n) = start / √(1 + n/T)                                    without warm-up
        value(n) = start · min(n/W, √(W/n))                              with `warmup=W` (and T = W): Noam

    | here        | paper        | units | domain | meaning                                                |
    | `start`     | 1/√(d·W)     | value | finite | the highest value, at the first step or step W         |
    | `warmup`    | warmup_steps | steps | ≥ 0    | W, the steps of the straight rise from 0               |
    | `timescale` | warmup_steps | steps | > 0    | T, to fall to 1/√2 of the highest; W if left out, or 1 |
    | `steps`     |              | steps | > 0    | optional horizon: constant after it                    |

    `InverseSqrt(x, warmup=W)` is `Warmup(W).then(InverseSqrt(x, timescale=W))`.

    Where implementations differ: the paper counts the step being taken, so its first step already has 1/W of
    the peak; `InverseSqrt(...).shifted(-1)` does that. Its lr for width d is `start = (d * W) ** -0.5`.

    >>> schedule = InverseSqrt(1e-3, warmup=4000)
    >>> schedule(0), schedule(2000), schedule(4000), schedule(16_000)
    (0.0, 0.0005, 0.001, 0.0005)
    """

    start: Value
    _: KW_ONLY
    warmup: LengthOr0 = 0
    timescale: Length = UNSAID

    def _complete(self) -> None:
        if self.timescale is UNSAID:
            self._set("timescale", self.warmup or 1)
        check_warmup(self.warmup, self.steps)

    @property
    def rise(self) -> float:
        """The warm-up."""
        return self.warmup

    def _formula(self, n: float) -> float:
        rising = n / self.warmup if self.warmup else 1.0
        falling = 1 / math.sqrt(1 + max(n - self.warmup, 0) / self.timescale)
        return self.start * min(rising, falling)

    def _bends(self, last: float) -> Iterable[float]:
        return (self.warmup,)
