"""A gentle start before any other schedule.

Source: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2. https://arxiv.org/abs/1706.02677
"""

from __future__ import annotations

from dataclasses import dataclass

from schuss.schedules.schedule import UNSAID, Fraction, LengthOr0, Parametric, Schedule, between


@dataclass(frozen=True, repr=False)
class Warmup(Parametric):
    """The straight line up to whatever value the next schedule starts with.

        value(n) = (fraction + (1 − fraction) · n/W) · following(0)      before step W
        value(n) = following(n − W)                                      from there on

    | here       | units | domain | meaning                                                   |
    | `steps`    | W     | ≥ 0    | how long it rises (or `epochs`); 0 is no warm-up          |
    | `fraction` | none  | [0, 1] | where it begins, as a fraction of the value it leads to   |

    On its own it is a factor that rises to 1 and stays; `Warmup(500) * 3e-4` rises to 3e-4 and stays. With
    `fraction=0` the very first step is taken with 0 and moves nothing; that is what the formula of most
    papers says.

    Where implementations differ: `Warmup(W).then(Cosine(peak, steps=N))` has W + N steps in all, while the
    `decay_steps` of `optax.warmup_cosine_decay_schedule` includes the warm-up. torch's `LinearLR` needs a
    `SequentialLR` for this.

    >>> from schuss.schedules import Cosine
    >>> schedule = Warmup(500).then(Cosine(3e-4, steps=10_000))
    >>> schedule(0), schedule(250), schedule(500), schedule(10_500)
    (0.0, 0.00015, 0.0003, 0.0)
    """

    steps: LengthOr0 = UNSAID
    fraction: Fraction = 0.0

    @property
    def rise(self) -> float:
        """All of it."""
        return self.steps

    @property
    def open_ended(self) -> bool:
        """It is: what it leads to is not said."""
        return True

    def _formula(self, n: float) -> float:
        return between(self.fraction, 1.0, n / self.steps) if self.steps else 1.0

    def leading_to(self, following: Schedule) -> Schedule:
        """Return the line scaled to the value that it leads to."""
        return self * following(0)
