"""One table of all schedules; a schedule listed here is tested by every generic test."""

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

# (schedule, first value, last value or None where it never ends)
TABLE = [
    (Constant(3e-4), 3e-4, None),
    (Constant(3e-4, steps=100), 3e-4, 3e-4),
    (Linear(1e-3, steps=1000), 1e-3, 0.0),
    (Linear(0.1, 0.7, steps=7), 0.1, 0.7),
    (Cosine(1e-3, 1e-5, steps=1000), 1e-3, 1e-5),
    (Cosine(0.1, 0.3, steps=3), 0.1, 0.3),
    (CosineRestarts(1e-3, 0, period=100, multiplier=2), 1e-3, None),
    (CosineRestarts(1e-3, 1e-5, period=30), 1e-3, None),
    (CosineRestarts(1e-3, 1e-4, period=10, multiplier=1.5, shrink=0.8, cycles=4), 1e-3, 1e-4),
    (CosineRestarts(1e-3, 1e-5, period=50, steps=200), 1e-3, 1e-5),
    (CosineRestarts(1e-3, 1e-5, period=10, multiplier=3, steps=130), 1e-3, 1e-5),
    (CosineRestarts(1e-3, 1e-5, cycles=7, steps=1000), 1e-3, 1e-5),
    (CosineRestarts(1e-3, 0.1, cycles=3, multiplier=2.5, steps=1000), 1e-3, 0.1),
    (StepDecay(1e-3, rate=0.1, every=30), 1e-3, None),
    (StepDecay(1e-3, 1e-5, rate=0.5, every=10, steps=400), 1e-3, 1e-5),
    (StepDecay(1e-3, milestones=(30, 80)), 1e-3, None),
    (Exponential(1e-3, rate=0.99), 1e-3, None),
    (Exponential(1e-3, 1e-4, rate=0.9, every=5, steps=900), 1e-3, 1e-4),
    (Exponential(1e-7, 0.3, steps=90), 1e-7, 0.3),
    (Polynomial(1e-3, power=2, steps=1000), 1e-3, 0.0),
    (Polynomial(0.1, 0.7, power=0.9, steps=33), 0.1, 0.7),
    (InverseSqrt(1e-3), 1e-3, None),
    (InverseSqrt(1e-3, warmup=400), 0.0, None),
    (InverseSqrt(1e-3, timescale=50, warmup=5, steps=55), 0.0, 1e-3 / 2**0.5),
    (OneCycle(0.1, steps=1000), 0.004, 0.0),
    (OneCycle(0.1, 0.3, start=0.7, warmup=3, shape="linear", steps=11), 0.7, 0.3),
    (OneCycle(0.1, warmup=0, steps=10), 0.1, 0.0),
    (OneCycle(0.1, warmup=10, steps=10), 0.004, 0.1),
    (Cyclic(1e-4, 1e-2, period=200), 1e-4, None),
    (Cyclic(1e-4, 1e-2, period=20, turn_after=5, shrink=0.5, rate=0.999), 1e-4, None),
    (WarmupStableDecay(1e-3, steps=1000), 0.0, 0.0),
    (WarmupStableDecay(1e-3, 0.3, warmup=0, decay=7, shape="sqrt", steps=9), 1e-3, 0.3),
    (WarmupStableDecay(1e-3, 1e-5, warmup=4, decay=6, shape="cosine", steps=10), 0.0, 1e-5),
    (WarmupStableDecay(1e-3, warmup=4, decay=0, steps=10), 0.0, 1e-3),
    (Warmup(500), 0.0, 1.0),
    (Warmup(5, 0.25), 0.25, 1.0),
    (Warmup(500).then(Cosine(3e-4, steps=10_000)), 0.0, 0.0),
    (Warmup(5, 0.1).then(Constant(0.3)), 0.03, None),
    (Linear(0.5, 0.1, steps=9).then(Cosine(0.3, steps=4)).then(Constant(1)).until(30), 0.5, 1.0),
    (0.5 * Cosine(0.2, 0.1, steps=40), 0.1, 0.05),
    (Cosine(0.2, 0.1, steps=40).shifted(10), 0.2, 0.1),
    (Linear(0.2, 0.1, steps=40).shifted(-20), (0.2 + 0.1) / 2, 0.1),
    (Cosine(0.2, 0.1, steps=40).until(60), 0.2, 0.1),
    (Warmup(5).then(Cosine(0.1, 0.01, steps=85)).in_epochs(390), 0.0, 0.01),
]


@pytest.fixture(params=TABLE, ids=[repr(row[0]) for row in TABLE])
def row(request):
    """A schedule with its first and its last value."""
    return request.param


@pytest.fixture
def table():
    return TABLE


@pytest.fixture
def schedule(row):
    return row[0]
