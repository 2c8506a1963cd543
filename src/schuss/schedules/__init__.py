"""Schedules: pure functions of the number of finished steps, for any hyperparameter.

>>> from schuss.schedules import Cosine, Warmup
>>> schedule = Warmup(500).then(Cosine(3e-4, steps=10_000))
>>> schedule(500)
0.0003

`schedule.py` says what they have in common and how they are put together.
"""

from schuss.schedules.cycles import CosineRestarts, Cyclic
from schuss.schedules.decays import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    Polynomial,
    StepDecay,
)
from schuss.schedules.phases import OneCycle, Warmup, WarmupStableDecay
from schuss.schedules.schedule import Schedule

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Cyclic",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "OneCycle",
    "Polynomial",
    "Schedule",
    "StepDecay",
    "Warmup",
    "WarmupStableDecay",
]
