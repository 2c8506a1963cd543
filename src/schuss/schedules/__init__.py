"""Schedules: pure functions of the number of finished steps, for any hyperparameter.

>>> from schuss.schedules import Cosine, Warmup
>>> schedule = Warmup(500).then(Cosine(3e-4, steps=10_000))
>>> schedule(500)
0.0003

One file is one schedule; `schedule.py` says what they have in common and how they are put together.
"""

from schuss.schedules.constant import Constant
from schuss.schedules.cosine import Cosine
from schuss.schedules.cosinerestarts import CosineRestarts
from schuss.schedules.cyclic import Cyclic
from schuss.schedules.exponential import Exponential
from schuss.schedules.inversesqrt import InverseSqrt
from schuss.schedules.linear import Linear
from schuss.schedules.onecycle import OneCycle
from schuss.schedules.polynomial import Polynomial
from schuss.schedules.schedule import Schedule
from schuss.schedules.stepdecay import StepDecay
from schuss.schedules.warmup import Warmup
from schuss.schedules.warmupstabledecay import WarmupStableDecay

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
