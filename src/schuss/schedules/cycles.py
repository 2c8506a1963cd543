"""Schedules that rise again: the triangle, and half cosines that each jump back up.

Sources: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.2. https://arxiv.org/abs/1506.01186
Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, equation 5.
https://arxiv.org/abs/1608.03983
Huang et al., "Snapshot ensembles: train 1, get M for free", 2017, equation 2 (whole cycles in the horizon).
https://arxiv.org/abs/1704.00109
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Annotated

from schuss.errors import Domain, refusal
from schuss.schedules.schedule import (
    MANY,
    UNSAID,
    Length,
    Parametric,
    Positive,
    Rate,
    Value,
    between,
    cosine,
    multiples,
)


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


@dataclass(frozen=True, repr=False)
class CosineRestarts(Parametric):
    """From the peak to `end` along half a cosine, then back to the peak at once, again and again.

        k = the cycle of step n, x = the fraction of it that is over
        value(n) = end + ½ (start − end) shrink^k (1 + cos πx),   cycle k lasts period · multiplier^k steps

    | here         | paper  | units | domain | meaning                                                 |
    | `start`      | η_max  | value | finite | the first peak                                          |
    | `end`        | η_min  | value | finite | what each cycle falls to                                |
    | `period`     | T₀     | steps | > 0    | the length of the first cycle                           |
    | `multiplier` | T_mult | none  | ≥ 1    | each cycle is so many times longer than the last        |
    | `shrink`     |        | none  | (0, 1] | each peak over the last, both measured from `end`       |
    | `cycles`     | M      | whole | ≥ 1    | how many, and then the value stays at `end`             |
    | `steps`      | T      | steps | > 0    | the horizon (or `epochs`)                               |

    Say `period` (for ever), `period` and `cycles`, `period` and `steps` (the horizon may fall within a cycle,
    where the value then stays), or `cycles` and `steps`: cyclic cosine annealing, in equal cycles.
    Several cycles in one epoch: `CosineRestarts(1e-3, cycles=5, epochs=1, steps_per_epoch=390)`.

    Where implementations differ: the same as torch's `CosineAnnealingWarmRestarts`, whose `step(epoch)` finds
    the cycle by a rounded logarithm and is at the floor where a restart is due (T_mult=10, epoch 111), which
    here is corrected. Keras' `m_mul` is `shrink`; `optax.sgdr_schedule` lists the cycles one by one. Snapshot
    ensembles round the period up to whole steps.

    >>> schedule = CosineRestarts(1e-3, 0, period=100, multiplier=2)
    >>> [round(schedule(n), 12) for n in (0, 50, 100, 200, 300)]
    [0.001, 0.0005, 0.001, 0.0005, 0.001]
    >>> annealed = CosineRestarts(1e-3, cycles=4, steps=1000)
    >>> annealed(0), annealed(250), annealed(1000), annealed(1250)
    (0.001, 0.001, 0.0, 0.0)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    period: Length = UNSAID
    multiplier: Annotated[float, Domain(low=1, advice="Shrinking cycles would never reach the horizon.")] = (
        1.0
    )
    shrink: Rate = 1.0
    cycles: Positive = UNSAID

    def _complete(self) -> None:
        said = (self.period is not UNSAID, self.cycles is not UNSAID, self.steps < math.inf)
        if said not in ((True, False, False), (True, True, False), (True, False, True), (False, True, True)):
            raise TypeError(
                "CosineRestarts needs period, period and cycles, period and steps, or cycles and steps."
            )
        if self.cycles is not UNSAID:
            if self.cycles % 1:
                advice = "Use steps to stop within a cycle."
                raise refusal("cycles", self.cycles, "a whole number above 0", advice)
            self._set("cycles", int(self.cycles))

    @property
    def length(self) -> float:
        """The horizon, or the end of the last cycle."""
        if self.period is UNSAID or self.cycles is UNSAID:
            return self.steps
        return self.period * self._begin(self.cycles)

    def _begin(self, cycle: float) -> float:
        """Where a cycle begins, measured in first periods: 1 + m + m² + ..."""
        return cycle if self.multiplier == 1 else (self.multiplier**cycle - 1) / (self.multiplier - 1)

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """How many first periods there are in how many steps: n · this ratio is exact at equal cycles."""
        return (1.0, self.period) if self.period is not UNSAID else (self._begin(self.cycles), self.steps)

    def _time(self, n: float) -> float:
        periods, steps = self._scale
        return n * periods / steps

    @cached_property
    def _last(self) -> float:
        """The cycle in which the schedule ends: the one before, if a cycle ends there."""
        if self.cycles is not UNSAID:
            return self.cycles - 1
        if self.length == math.inf:
            return math.inf
        time = self._time(self.length)
        cycle = self._cycle(time)
        return cycle - (self._begin(cycle) == time)

    def _cycle(self, time: float) -> float:
        """The last cycle that has begun by then."""
        if self.multiplier == 1:
            return math.floor(time)
        cycle = math.floor(math.log(1 + time * (self.multiplier - 1)) / math.log(self.multiplier))
        # The rounded logarithm may name the cycle before a restart, or just before one the cycle to come.
        if self._begin(cycle + 1) <= time:
            return cycle + 1
        return cycle - 1 if self._begin(cycle) > time else cycle

    def _formula(self, n: float) -> float:
        time = self._time(n)
        cycle = min(self._cycle(time), self._last)
        gone = (time - self._begin(cycle)) / self.multiplier**cycle
        peak = between(self.end, self.start, self.shrink**cycle)
        return between(peak, self.end, cosine(gone))

    def _bends(self, last: float) -> Iterable[float]:
        periods, steps = self._scale
        cycles = min(self._cycle(self._time(last)), self._last, MANY)
        return (self._begin(k) * steps / periods for k in range(int(cycles) + 1))
