"""The staircase of the first deep image networks.

Source: He et al., "Deep residual learning for image recognition", 2016, section 3.4. https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

from schuss.errors import refusal
from schuss.schedules.schedule import UNSAID, Length, NotNegative, Parametric, Rate, multiples, whole_steps


@dataclass(frozen=True, repr=False)
class StepDecay(Parametric):
    """Times `rate` after every so many steps, or at milestones.

        value(n) = start · rate^⌊n / every⌋             or
        value(n) = start · rate^(number of milestones ≤ n)

    | here         | units | domain     | meaning                                                  |
    | `start`      | value | ≥ 0        | the value of the first step                              |
    | `end`        | value | [0, start] | a floor: it never falls below                            |
    | `rate`       | none  | (0, 1]     | what a stair multiplies by                               |
    | `every`      | steps | > 0        | the length of a stair (in epochs with `steps_per_epoch`) |
    | `milestones` | steps | increasing | instead of `every`: the first step of each stair         |
    | `steps`      | steps | > 0        | optional horizon: no stair after it                      |

    Where implementations differ: nowhere while the step is whole. torch's `StepLR` and `MultiStepLR` multiply
    the lr that they find, so that a manual change of it stays; this is a function of the step alone.

    >>> schedule = StepDecay(1e-3, rate=0.1, every=30)
    >>> [round(schedule(n), 12) for n in (0, 29, 30, 60)]
    [0.001, 0.001, 0.0001, 1e-05]
    >>> round(StepDecay(1e-3, rate=0.1, milestones=(30, 80))(80), 12)
    1e-05
    """

    start: NotNegative
    end: NotNegative = 0.0
    _: KW_ONLY
    rate: Rate = 0.1
    every: Length = UNSAID
    milestones: tuple[float, ...] = ()

    def __post_init__(self, epochs: float | None, steps_per_epoch: float | None) -> None:
        super().__post_init__(epochs, steps_per_epoch)
        self._set("milestones", whole_steps("milestones", self.milestones, steps_per_epoch))
        if (self.every is UNSAID) == (not self.milestones):
            raise TypeError("StepDecay needs either every=30 or milestones=(30, 80).")
        if any(b <= a for a, b in zip((0, *self.milestones), self.milestones, strict=False)):
            raise refusal(
                "milestones", self.milestones, "increasing steps above 0", "Try sorted(set(milestones))."
            )
        if self.end > self.start:
            raise refusal("end", self.end, f"in [0, {self.start}]", "A stair only goes down.")

    def _formula(self, n: float) -> float:
        stairs = sum(n >= m for m in self.milestones) if self.milestones else math.floor(n / self.every)
        return max(self.start * self.rate**stairs, self.end)

    def _bends(self, last: float) -> Iterable[float]:
        return self.milestones or multiples(self.every, last)
