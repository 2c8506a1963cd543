"""A mistake is refused where it is made, in words that help."""

import math

import pytest

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

ABOVE_0 = "is not a finite number > 0."

VALUES = [
    (lambda: Linear(1e-3, steps=-5), f"steps=-5 {ABOVE_0}"),
    (lambda: Linear(1e-3, steps=0), f"steps=0 {ABOVE_0}"),
    (lambda: Cosine(1e-3, steps=math.nan), f"steps=nan {ABOVE_0}"),
    (lambda: Cosine(1e-3, steps=math.inf), f"steps=inf {ABOVE_0}"),
    (lambda: Cosine(1e-3, steps="100"), f"steps='100' {ABOVE_0}"),
    (lambda: Cosine(1e-3, epochs=-1, steps_per_epoch=10), f"steps=-1 {ABOVE_0}"),
    (lambda: Cosine(1e-3, epochs=1, steps_per_epoch=0), "steps_per_epoch=0 is not a finite number > 0."),
    (lambda: Constant(1, steps=0), f"steps=0 {ABOVE_0} Say steps=1000"),
    (lambda: Constant(math.nan), "start=nan is not a finite number."),
    (lambda: Cosine(1, math.inf, steps=3), "end=inf is not a finite number."),
    (lambda: Polynomial(1, power=0, steps=3), "power=0 is not a finite number > 0."),
    (lambda: CosineRestarts(1, period=0), f"period=0 {ABOVE_0}"),
    (
        lambda: CosineRestarts(1, period=10, multiplier=0.5),
        "multiplier=0.5 is not a finite number ≥ 1. Shrinking cycles",
    ),
    (lambda: CosineRestarts(1, period=10, shrink=1.5), "shrink=1.5 is not in (0, 1]."),
    (lambda: CosineRestarts(1, cycles=2.5, steps=10), "cycles=2.5 is not a whole number above 0."),
    (lambda: StepDecay(1, every=0), f"every=0 {ABOVE_0}"),
    (lambda: StepDecay(1, rate=0, every=3), "rate=0 is not in (0, 1]."),
    (lambda: StepDecay(1, milestones=(30, 20)), "milestones=(30, 20) is not increasing steps above 0."),
    (lambda: StepDecay(1, milestones=(0, 20)), "milestones=(0, 20) is not increasing steps above 0."),
    (lambda: StepDecay(1, milestones=3), "milestones=3 is not several steps. Try milestones=(30, 80)."),
    (lambda: StepDecay(1, milestones="30"), "milestones='30' is not several steps."),
    (lambda: Cosine(None, steps=9), "start=None is not a finite number."),
    (lambda: Cosine(1, None, steps=9), "end=None is not a finite number."),
    (lambda: CosineRestarts(1, period=9, shrink=None), "shrink=None is not in (0, 1]."),
    (lambda: StepDecay(1, milestones=(3, math.nan)), "milestones=nan is not a finite number."),
    (lambda: StepDecay(1, 2, every=3), "end=2.0 is not in [0, 1.0]."),
    (lambda: StepDecay(-1, every=3), "start=-1 is not a finite number ≥ 0."),
    (lambda: Exponential(0, rate=0.5), "start=0 is not a finite number > 0."),
    (lambda: Exponential(1, rate=1.01), "rate=1.01 is not in (0, 1]."),
    (lambda: Exponential(1, 2, rate=0.9), "end=2.0 is not in [0, 1.0]. With a rate it only falls"),
    (lambda: InverseSqrt(1, warmup=20, steps=10), "warmup=20 is not within the horizon of 10 steps."),
    (lambda: InverseSqrt(1, timescale=0), f"timescale=0 {ABOVE_0}"),
    (lambda: OneCycle(1, warmup=20, steps=10), "warmup=20 is not within the horizon of 10 steps."),
    (lambda: OneCycle(1, steps=10, shape="sqrt"), "shape='sqrt' is not one of 'cosine', 'linear'."),
    (lambda: Cyclic(1, period=-3), f"period=-3 {ABOVE_0}"),
    (lambda: Cyclic(1, period=10, turn_after=10), "turn_after=10 is not in (0, 10)."),
    (lambda: WarmupStableDecay(1, warmup=20, steps=10), "warmup + decay=21 is not within the horizon of 10"),
    (
        lambda: WarmupStableDecay(1, steps=10, shape="x"),
        "shape='x' is not one of 'linear', 'cosine', 'sqrt'.",
    ),
    (lambda: Warmup(-1), "steps=-1 is not a finite number ≥ 0."),
    (lambda: Warmup(5, 1.5), "fraction=1.5 is not in [0, 1]."),
    (
        lambda: Warmup(500).then(Cosine(1, steps=100)).until(400),
        "warmup=500 is not within the horizon of 400 steps. Warm up for fewer steps, or train for at least",
    ),
    (
        lambda: Warmup(5).then(Cosine(1, steps=9)).in_epochs(10).until(49),
        "warmup=50 is not within the horizon",
    ),
    (
        lambda: Warmup(5).then(Cosine(1, steps=9)).shifted(3).until(7),
        "warmup=8 is not within the horizon of 7",
    ),
    (lambda: Cosine(1, steps=9).until(0), "steps=0 is not a finite number > 0."),
    (lambda: Cosine(1, steps=9).shifted(math.nan), "steps=nan is not a finite number."),
    (lambda: Cosine(1, steps=9) * math.inf, "factor=inf is not a finite number."),
    (lambda: Cosine(1, steps=9).in_epochs(-2), "steps_per_epoch=-2 is not a finite number > 0."),
    (
        lambda: Constant(1).then(Constant(2)),
        "first=Constant(1.0) is not a schedule that ends. Try .until(1000)",
    ),
]


@pytest.mark.parametrize(("make", "message"), VALUES, ids=[message[:50] for _, message in VALUES])
def test_a_wrong_value(make, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared whole, next line
        make()
    assert message in str(caught.value)


MISSING = [
    (lambda: Linear(1e-3), "Linear needs its length. Say steps=1000, or epochs=90 with steps_per_epoch=390."),
    (lambda: Warmup(), "Warmup needs its length."),
    (lambda: Cosine(1, epochs=90), "epochs=90 needs steps_per_epoch"),
    (lambda: Cosine(1, steps=9, epochs=9, steps_per_epoch=1), "steps=9 and epochs=9 say the same thing."),
    (lambda: CosineRestarts(1), "CosineRestarts needs period, period and cycles"),
    (lambda: CosineRestarts(1, cycles=3), "CosineRestarts needs period, period and cycles"),
    (
        lambda: CosineRestarts(1, period=3, cycles=3, steps=9),
        "CosineRestarts needs period, period and cycles",
    ),
    (lambda: StepDecay(1), "StepDecay needs either every=30 or milestones=(30, 80)."),
    (
        lambda: StepDecay(1, every=3, milestones=(3,)),
        "StepDecay needs either every=30 or milestones=(30, 80).",
    ),
    (lambda: Exponential(1), "Exponential needs rate=0.99, or an end above 0 and steps"),
    (lambda: Exponential(1, steps=30), "Exponential needs rate=0.99, or an end above 0 and steps"),
    (lambda: Cyclic(1, 2), "Cyclic needs the length of a cycle"),
    (lambda: Warmup(5).then(3e-4), "0.0003 is not a schedule. Try Constant(0.0003)."),
    (lambda: Cosine(1, steps=3) * Cosine(1, steps=3), "unsupported operand"),
]


@pytest.mark.parametrize(("make", "message"), MISSING, ids=[message[:50] for _, message in MISSING])
def test_a_missing_or_double_word(make, message):
    with pytest.raises(TypeError) as caught:
        make()
    assert message in str(caught.value)
