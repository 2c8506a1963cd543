"""Learning-rate schedules by name, over a run's whole horizon: the names that `schuss schedule` knows.

Every schedule starts from, or rises to, the configuration's learning rate. `warmup+` before any of them
spends the first 5 % of the horizon rising to it; the schedule proper then has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from schuss.errors import unknown
from schuss.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Polynomial,
    StepDecay,
    Warmup,
    WarmupStableDecay,
)
from schuss.schedules.words import schedule_of

WARMUP = 0.05

MAKERS: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda lr, steps: Constant(lr),
    "cosine": lambda lr, steps: Cosine(lr, steps=steps),
    "linear": lambda lr, steps: Linear(lr, 0.0, steps=steps),
    "step": lambda lr, steps: StepDecay(lr, rate=0.1, every=max(1.0, steps / 3)),
    "restarts": lambda lr, steps: CosineRestarts(lr, cycles=4, steps=steps),
    "cyclic": lambda lr, steps: Cyclic(lr / 10, lr, period=max(2.0, steps / 4)),
    "exponential": lambda lr, steps: Exponential(lr, lr / 100, steps=steps),
    "polynomial": lambda lr, steps: Polynomial(lr, power=2.0, steps=steps),
    "inverse-sqrt": lambda lr, steps: InverseSqrt(lr),
    "onecycle": lambda lr, steps: OneCycle(lr, steps=steps),
    "wsd": lambda lr, steps: WarmupStableDecay(lr, steps=steps),
}


def names() -> list[str]:
    """Every schedule's name; each also with `warmup+` before it."""
    return list(MAKERS)


def check(name: str) -> str:
    """Return the name that the lab has for this schedule, which may be named by any word of `schuss schedule`.

    >>> check("hold"), check("warmup+CosineRestarts")
    ('constant', 'warmup+restarts')
    """
    text = str(name)
    first = "warmup+" * text.startswith("warmup+")
    kind = schedule_of(text.removeprefix("warmup+"))
    known = None if kind is None else next((each for each in MAKERS if schedule_of(each) is kind), None)
    if known is None:
        advice = "Any of them also with warmup+ before it."
        raise unknown("schedule", text.removeprefix("warmup+"), MAKERS, advice)
    return first + known


def schedule(name: str, lr: float, steps: int) -> Callable[[int], float]:
    """The learning rate after n finished steps of a run of so many.

    >>> warm = schedule("warmup+constant", 0.1, 100)
    >>> round(warm(0), 6), round(warm(4), 6), warm(5), warm(99)
    (0.02, 0.084, 0.1, 0.1)
    """
    name = check(name)
    make = MAKERS[name.removeprefix("warmup+")]
    if not name.startswith("warmup+"):
        return make(lr, steps)
    rise = max(1, round(WARMUP * steps))
    # The first step is taken with a fraction of the learning rate, not with none of it.
    return Warmup(rise, fraction=1 / rise).then(make(lr, max(1, steps - rise)))
