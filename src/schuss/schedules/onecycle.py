"""Up once, down once: super-convergence.

Source: Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
rates", 2018. https://arxiv.org/abs/1708.07120
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from schuss.errors import Domain
from schuss.schedules.schedule import (
    CURVES,
    UNSAID,
    Length,
    LengthOr0,
    Parametric,
    Value,
    between,
    check_warmup,
)


@dataclass(frozen=True, repr=False)
class OneCycle(Parametric):
    """Up from `start` to the peak, then down to `end`, both along half a cosine or a line.

        value(n) = start → peak   over the first W steps, then
        value(n) = peak → end     over the remaining N − W

    | here     | units    | domain         | meaning                                          |
    | `peak`   | value    | finite         | the value of step W                              |
    | `end`    | value    | finite         | the value from step N on                         |
    | `start`  | value    | finite         | the value of the first step; peak/25 if left out |
    | `warmup` | W, steps | [0, N]         | the rise; 3/10 of the horizon if left out        |
    | `shape`  |          | cosine, linear | of the rise and of the fall                      |
    | `steps`  | N        | > 0            | the horizon (or `epochs`)                        |

    For momentum, which falls and then rises: `OneCycle(0.85, 0.95, start=0.95, steps=...)`.

    Where implementations differ: torch's `OneCycleLR(peak, total_steps=T)` places the peak at 0.3·T − 1 and
    the end at T − 1, ends at peak/250000, and raises after T: `OneCycle(peak, peak / 25e4, steps=T - 1,
    warmup=0.3 * T - 1)` is the same; `optax.cosine_onecycle_schedule(T, peak)` is `OneCycle(peak, peak /
    25e4, steps=T)`. torch's `three_phase` is `Cosine(a, peak, steps=W).then(Cosine(peak, a,
    steps=W)).then(Cosine(a, end, steps=...))`.

    >>> schedule = OneCycle(0.1, steps=1000)
    >>> schedule(0), schedule(300), schedule(650), schedule(1000)
    (0.004, 0.1, 0.05, 0.0)
    """

    peak: Value
    end: Value = 0.0
    _: KW_ONLY
    start: Value = UNSAID
    warmup: LengthOr0 = UNSAID
    shape: Annotated[str, Domain(choices=("cosine", "linear"))] = "cosine"
    steps: Length = UNSAID

    def _complete(self) -> None:
        if self.start is UNSAID:
            self._set("start", self.peak / 25)
        if self.warmup is UNSAID:
            self._set("warmup", int(3 * self.steps // 10))
        check_warmup(self.warmup, self.steps)

    @property
    def rise(self) -> float:
        """The rise."""
        return self.warmup

    def _formula(self, n: float) -> float:
        gone = CURVES[self.shape]
        if n < self.warmup:
            return between(self.start, self.peak, gone(n / self.warmup))
        # A fall of no steps is never begun: the last step of the rise is the horizon.
        return between(self.peak, self.end, gone((n - self.warmup) / ((self.steps - self.warmup) or 1)))

    def _bends(self, last: float) -> Iterable[float]:
        return (self.warmup,)
