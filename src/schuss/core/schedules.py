"""Hyperparameters that are functions of the finished steps."""

from __future__ import annotations

import math
from typing import Any, cast

from schuss.errors import refusal


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a function of the finished steps; of a pair, whether either member is."""
    return callable(value) or (isinstance(value, tuple) and any(map(callable, cast(tuple[Any, ...], value))))


def check_schedule(name: str, schedule: Any) -> None:
    """Refuse a warm-up that leads to nothing: it is a factor that rises to 1, and a rate of 1 is seldom meant."""
    for one in cast(tuple[Any, ...], schedule) if isinstance(schedule, tuple) else (schedule,):
        if getattr(one, "open_ended", False) is True:
            raise refusal(
                name,
                one,
                "a schedule of values: it ends in a warm-up, which alone is a factor that rises to 1",
                f"Say what it rises to: {one!r} * 0.001, or {one!r}.then(Cosine(0.001, steps=1000)).",
            )


def at(value: Any, finished: int) -> Any:
    """A hyperparameter after `finished` steps: what its schedule says, if it has one; of a pair, each on its own."""
    if isinstance(value, tuple):
        return tuple(at(one, finished) for one in cast(tuple[Any, ...], value))
    if not callable(value):
        return value
    number = plain_number(value(finished))
    if callable(number):  # a class of schedules, for one, makes a schedule of the step
        raise ValueError(f"The schedule {value!r} gave {number!r} at n={finished}, which is no number.")
    return number


def plain_number(value: Any) -> Any:
    """Python's own number, from a tensor or array of one too; of a pair, each member."""
    if isinstance(value, tuple | list):
        return type(value)(map(plain_number, cast(list[Any], value)))
    if hasattr(value, "item"):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    return value
