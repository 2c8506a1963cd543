"""Schedules that fall from a first value, and the one that stays.

Sources: Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, equation 5 for a single
period (Cosine). https://arxiv.org/abs/1608.03983
Chen et al., "DeepLab", 2018, section 4.1 (Polynomial, power 0.9). https://arxiv.org/abs/1606.00915
Vaswani et al., "Attention is all you need", 2017, equation 3 (InverseSqrt, called Noam). https://arxiv.org/abs/1706.03762
He et al., "Deep residual learning", 2016, section 3.4 (StepDecay). https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

from schuss.errors import refusal
from schuss.schedules.schedule import (
    UNSAID,
    Length,
    LengthOr0,
    NotNegative,
    Parametric,
    Positive,
    Rate,
    Value,
    between,
    cosine,
    multiples,
    whole_steps,
)


@dataclass(frozen=True, repr=False)
class Constant(Parametric):
    """The same value at every step.

        value(n) = start

    | here    | units | domain | meaning                                               |
    | `start` | value | finite | the value                                             |
    | `steps` | steps | > 0    | only where another schedule follows; without end else |

    >>> from schuss.schedules import Linear
    >>> held = Constant(0.5, steps=100).then(Linear(0.5, steps=50))
    >>> held(99), held(125), held(150)
    (0.5, 0.25, 0.0)
    """

    start: Value

    def _formula(self, n: float) -> float:
        return self.start


@dataclass(frozen=True, repr=False)
class Linear(Parametric):
    """The straight line from `start` to `end`; to 0 if no end is said.

        value(n) = (1 − n/N) · start + n/N · end

    | here    | units | domain | meaning                               |
    | `start` | value | finite | the value of the first step           |
    | `end`   | value | finite | the value from step N on              |
    | `steps` | N     | > 0    | how many steps it takes (or `epochs`) |

    Where implementations differ: `torch.optim.lr_scheduler.LinearLR` says both ends as factors of the
    optimizer's lr and by default rises from a third; `optax.linear_schedule` and Keras'
    `PolynomialDecay(power=1)` are the same.

    >>> schedule = Linear(1e-3, steps=1000)
    >>> schedule(0), schedule(500), schedule(1000), schedule(5000)
    (0.001, 0.0005, 0.0, 0.0)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    steps: Length = UNSAID

    def _formula(self, n: float) -> float:
        return between(self.start, self.end, n / self.steps)


@dataclass(frozen=True, repr=False)
class Cosine(Parametric):
    """From `start` to `end` along half a cosine: slow, fast in the middle, slow.

        value(n) = end + ½ (start − end) (1 + cos πn/N)

    | here    | paper | units | domain | meaning                               |
    | `start` | η_max | value | finite | the value of the first step           |
    | `end`   | η_min | value | finite | the floor, and the value from N on    |
    | `steps` | T     | N     | > 0    | how many steps it takes (or `epochs`) |

    Where implementations differ: torch's `CosineAnnealingLR` rises again after `T_max`, this stays at the
    floor. optax' and Keras' `alpha` is the floor as a fraction of the start: `end = alpha * start`.

    >>> schedule = Cosine(1e-3, 1e-5, steps=1000)
    >>> schedule(0), schedule(500), schedule(1000), schedule(1500)
    (0.001, 0.000505, 1e-05, 1e-05)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    steps: Length = UNSAID

    def _formula(self, n: float) -> float:
        return between(self.start, self.end, cosine(n / self.steps))


@dataclass(frozen=True, repr=False)
class Polynomial(Parametric):
    """From `start` to `end` along a power of what is left: above 1 it falls early, below 1 late.

        value(n) = end + (start − end) (1 − n/N)^power

    | here    | units | domain | meaning                               |
    | `start` | value | finite | the value of the first step           |
    | `end`   | value | finite | the value from step N on              |
    | `power` | none  | > 0    | 1 is the straight line, 2 a parabola  |
    | `steps` | N     | > 0    | how many steps it takes (or `epochs`) |

    Where implementations differ: torch's `PolynomialLR` ends at 0 only; `optax.polynomial_schedule` and
    Keras' `PolynomialDecay` are the same. All use power 1 by default.

    >>> schedule = Polynomial(1e-3, power=2, steps=1000)
    >>> schedule(0), schedule(500), schedule(1000)
    (0.001, 0.00025, 0.0)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    power: Positive = 1.0
    steps: Length = UNSAID

    def _formula(self, n: float) -> float:
        return between(self.start, self.end, 1 - (1 - n / self.steps) ** self.power)


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

    def _formula(self, n: float) -> float:
        rising = n / self.warmup if self.warmup else 1.0
        falling = 1 / math.sqrt(1 + max(n - self.warmup, 0) / self.timescale)
        return self.start * min(rising, falling)


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
