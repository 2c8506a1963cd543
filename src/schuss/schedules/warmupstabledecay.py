"""Up, hold, down: train as long as you like, decide late when to cool down.

Sources: Hu et al., "MiniCPM", 2024, section 4 (the three phases). https://arxiv.org/abs/2404.06395
Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024 (the
root-shaped cool-down, which they found best). https://arxiv.org/abs/2405.18392
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from schuss.errors import Domain, refusal
from schuss.schedules.schedule import CURVES, UNSAID, Length, LengthOr0, Parametric, Value, between


@dataclass(frozen=True, repr=False)
class WarmupStableDecay(Parametric):
    """A straight rise from 0, a plateau at the peak, and a fall to `end` in the last steps.

        value(n) = peak · n/W                              n < W
        value(n) = peak                                    W ≤ n ≤ N − D
        value(n) = peak → end                              the last D steps, with x = (n − (N − D)) / D:
                   x gone (linear), ½ (1 − cos πx) gone (cosine), √x gone (sqrt)

    | here     | paper | units | domain               | meaning                                          |
    | `peak`   | η     | value | finite               | the value of the plateau                         |
    | `end`    |       | value | finite               | the value from step N on                         |
    | `warmup` | W     | steps | ≥ 0                  | the rise; N/20 if left out                       |
    | `decay`  | D     | steps | ≥ 0, W + D ≤ N       | the fall; 0 for none, N/10 if left out           |
    | `shape`  |       |       | linear, cosine, sqrt | of the fall; sqrt is "1 − sqrt" of Hägele et al. |
    | `steps`  | T     | N     | > 0                  | the whole horizon, warm-up and decay included    |

    Where implementations differ: torch, optax and Keras have none. MiniCPM's own fall is exponential:
    `Warmup(W).then(Constant(peak, steps=S)).then(Exponential(peak, end, steps=D))`.

    >>> schedule = WarmupStableDecay(1e-3, warmup=100, decay=200, steps=1000)
    >>> schedule(0), schedule(50), schedule(100), schedule(800), schedule(900), schedule(1000)
    (0.0, 0.0005, 0.001, 0.001, 0.0005, 0.0)
    """

    peak: Value
    end: Value = 0.0
    _: KW_ONLY
    warmup: LengthOr0 = UNSAID
    decay: LengthOr0 = UNSAID
    shape: Annotated[str, Domain(choices=tuple(CURVES))] = "linear"
    steps: Length = UNSAID

    def _complete(self) -> None:
        if self.warmup is UNSAID:
            self._set("warmup", int(self.steps // 20))
        if self.decay is UNSAID:
            self._set("decay", int(self.steps // 10))
        if self.warmup + self.decay > self.steps:
            allowed = f"within the horizon of {self.steps} steps"
            raise refusal(
                "warmup + decay", self.warmup + self.decay, allowed, "Shorten one, or train longer."
            )

    @property
    def rise(self) -> float:
        """The warm-up."""
        return self.warmup

    def _formula(self, n: float) -> float:
        if n < self.warmup:
            return n / self.warmup * self.peak
        gone = max(n - (self.steps - self.decay), 0) / self.decay if self.decay else 0.0
        return between(self.peak, self.end, CURVES[self.shape](gone))

    def _bends(self, last: float) -> Iterable[float]:
        return (self.warmup, self.steps - self.decay)
