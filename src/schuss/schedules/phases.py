"""A gentle start before any other schedule, and schedules that rise once and fall once.

Sources: Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2 (Warmup). https://arxiv.org/abs/1706.02677
Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018 (OneCycle).
https://arxiv.org/abs/1708.07120
Hu et al., "MiniCPM", 2024, section 4 (WarmupStableDecay). https://arxiv.org/abs/2404.06395
Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024 (its root-shaped
cool-down, which they found best). https://arxiv.org/abs/2405.18392
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from schuss.errors import Domain, refusal
from schuss.schedules.schedule import (
    CURVES,
    UNSAID,
    Fraction,
    Length,
    LengthOr0,
    Parametric,
    Schedule,
    Value,
    between,
)


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

    def _formula(self, n: float) -> float:
        gone = CURVES[self.shape]
        if n < self.warmup:
            return between(self.start, self.peak, gone(n / self.warmup))
        # A fall of no steps is never begun: the last step of the rise is the horizon.
        return between(self.peak, self.end, gone((n - self.warmup) / ((self.steps - self.warmup) or 1)))


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

    def _formula(self, n: float) -> float:
        if n < self.warmup:
            return n / self.warmup * self.peak
        gone = max(n - (self.steps - self.decay), 0) / self.decay if self.decay else 0.0
        return between(self.peak, self.end, CURVES[self.shape](gone))

    def _bends(self, last: float) -> Iterable[float]:
        return (self.warmup, self.steps - self.decay)
