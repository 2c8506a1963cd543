"""What a schedule is: a pure function of the number of finished steps, and the ways to put several together.

A schedule has no state, so that resuming is calling it with the step, and a longer horizon is a new schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, InitVar, dataclass, fields, replace
from functools import cache, cached_property
from numbers import Integral, Real
from typing import Annotated, Any, get_type_hints

from schuss.errors import refusal


def between(start: float, end: float, gone: float) -> float:
    """The value after the fraction `gone` of the change; exactly `start` at 0 and exactly `end` at 1."""
    return (1 - gone) * start + gone * end


def cosine(x: float) -> float:
    """The fraction of the change made at time x of [0, 1], slow at both ends: (1 − cos πx) / 2."""
    return (1 - math.cos(math.pi * x)) / 2


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": cosine,
    "sqrt": math.sqrt,
}
"""The fraction of the change made at time x of [0, 1], by the name of its shape."""


def curve(shape: str, known: tuple[str, ...] = tuple(CURVES)) -> Callable[[float], float]:
    """Return the curve of that name, or raise which are known."""
    if shape not in known:
        raise refusal("shape", shape, f"one of {', '.join(known)}")
    return CURVES[shape]


class Schedule(ABC):
    """A number for every step: call it with the count of finished steps `n` = 0, 1, 2, ...

    The value belongs to the step about to be taken, so the first step uses `schedule(0)`. It is a
    `float`, rounded by an optimizer only. After `length` steps the value stays as it is.

    | to do this                       | write                     | which means                       |
    | one after another                | `first.then(second)`      | second(n − first.length) after it |
    | times a constant                 | `schedule * 0.5`          | 0.5 · schedule(n)                 |
    | start later (or below 0: midway) | `schedule.shifted(100)`   | schedule(n − 100), flat before    |
    | stop early (or hold longer)      | `schedule.until(1000)`    | schedule(min(n, 1000))            |
    | say all lengths in epochs        | `schedule.in_epochs(390)` | schedule(n / 390)                 |

    Raises `ValueError` when called with a negative, infinite or NaN step.
    """

    @property
    @abstractmethod
    def length(self) -> float:
        """Finished steps after which the value stays as it is; infinite where it never does."""

    @property
    def rise(self) -> float:
        """Steps of warm-up at the beginning; a horizon shorter than that is a mistake."""
        return 0

    @property
    def open_ended(self) -> bool:
        """Whether the last values are fractions of a schedule that is still to come: a warm-up's alone are."""
        return False

    @abstractmethod
    def formula(self, n: float) -> float:
        """Return the value after n steps, 0 ≤ n ≤ `length`."""

    @abstractmethod
    def corners(self, horizon: float) -> list[float]:
        """Return the steps up to `horizon` at which another piece of the curve begins, in order."""

    def at(self, n: float) -> float:
        """Return the value after n ≥ 0 steps: the formula, flat after its end."""
        return self.formula(n if self.length == math.inf else min(n, self.length))

    def __call__(self, n: float) -> float:
        """Return the value after n finished steps."""
        # Asked in this order, since `Real` alone is slow.
        if not isinstance(n, (int, float, Real)):  # pyright: ignore[reportUnnecessaryIsInstance]
            advice = "For several try [schedule(n) for n in range(1000)]."
            raise TypeError(f"n={n!r} is not a number of finished steps. {advice}")
        n = float(n)
        if not 0 <= n < math.inf:
            advice = "The first step is schedule(0)."
            raise refusal("n", n, "a finite count of finished steps, 0 or more", advice)
        return float(self.at(n))

    def then(self, following: Schedule) -> Schedule:
        """Return this schedule, followed by another that counts its own steps from 0 where this one ends.

        The first value after the boundary is `following(0)`: no step is taken twice, none is skipped.

        >>> from schuss.schedules import Cosine, Warmup
        >>> schedule = Warmup(500).then(Cosine(3e-4, steps=10_000))
        >>> schedule(0), schedule(250), schedule(500), schedule(10_500)
        (0.0, 0.00015, 0.0003, 0.0)
        """
        return Then(self, following)

    def shifted(self, steps: float) -> Schedule:
        """Return the schedule moved `steps` to the right; below 0, it starts in its own middle."""
        return Shifted(self, steps)

    def until(self, steps: float) -> Schedule:
        """Return the schedule cut to a horizon: it stays at `self(steps)` from there on.

        A horizon inside a warm-up is refused, since the peak would never be reached.
        """
        return Until(self, steps)

    def in_epochs(self, steps_per_epoch: float) -> Schedule:
        """Return the schedule read in steps, where all its lengths were meant in epochs.

        >>> from schuss.schedules import Cosine, Warmup
        >>> Warmup(5).then(Cosine(0.1, steps=85)).in_epochs(390).length
        35100
        """
        return InEpochs(self, steps_per_epoch)

    def __mul__(self, factor: float) -> Schedule:
        """Return the schedule times a constant."""
        return Scaled(self, factor) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def leading_to(self, following: Schedule) -> Schedule:
        """Return what stands before `following`: itself, but a warm-up takes its height from it."""
        return self


# A schedule with parameters: what they may be, and in which unit its lengths are given.


@dataclass(frozen=True)
class Domain:
    """What a parameter may be, for the check at construction."""

    allowed: str
    holds: Callable[[float], bool]
    advice: str = ""
    is_length: bool = False


_LENGTH_ADVICE = "Say steps=1000, or epochs=90 with steps_per_epoch=390."
_FINITE = Domain("a finite number", math.isfinite)
_ABOVE_0 = Domain("a finite number above 0", lambda v: 0 < v < math.inf)
Value = Annotated[float, _FINITE]
Positive = Annotated[float, _ABOVE_0]
NotNegative = Annotated[float, Domain("a finite number, 0 or more", lambda v: 0 <= v < math.inf)]
Share = Annotated[float, Domain("in [0, 1]", lambda v: 0 <= v <= 1)]
Rate = Annotated[float, Domain("in (0, 1]", lambda v: 0 < v <= 1, "It multiplies the value again and again.")]
Length = Annotated[
    float, Domain("a finite number of steps above 0", lambda v: 0 < v < math.inf, is_length=True)
]
LengthOr0 = Annotated[
    float, Domain("a finite number of steps, 0 or more", lambda v: 0 <= v < math.inf, is_length=True)
]
Horizon = Annotated[
    float, Domain("a number of steps above 0", lambda v: v > 0, _LENGTH_ADVICE, is_length=True)
]
UNSAID: Any = None
"""The default of a parameter that is derived from others, or must be given, when the schedule is constructed."""


@cache
def _domains(page: type) -> dict[str, Domain]:
    """Return the domain of each parameter of a schedule, read from its annotations."""
    hints = get_type_hints(page, include_extras=True)
    return {
        field.name: next(d for d in hints[field.name].__metadata__ if isinstance(d, Domain))
        for field in fields(page)
        if hasattr(hints[field.name], "__metadata__")
    }


@dataclass(frozen=True, repr=False)
class Page(Schedule):
    """A schedule with a formula of its own, checked at construction, its horizon said in steps or epochs.

    | here              | units         | domain | meaning                                                 |
    | `steps`           | steps         | > 0    | where it ends; optional where the formula has no end    |
    | `epochs`          | epochs        | > 0    | `steps`, said in epochs                                 |
    | `steps_per_epoch` | steps / epoch | > 0    | if given, *every* length given here is in epochs        |

    Lengths are stored in steps, whatever unit they were given in, so `repr` and `==` know steps only.
    """

    _: KW_ONLY
    steps: Horizon = math.inf
    epochs: InitVar[float | None] = None
    steps_per_epoch: InitVar[float | None] = None

    def __post_init__(self, epochs: float | None, steps_per_epoch: float | None) -> None:
        """Bring the lengths to steps and check each parameter; a schedule adds what they must be together."""
        if (epochs is not None) and steps_per_epoch is None:
            raise TypeError(
                f"epochs={epochs!r} needs steps_per_epoch, for example steps_per_epoch=len(loader)."
            )
        if epochs is not None and self.steps not in (UNSAID, math.inf):
            raise TypeError(
                f"steps={self.steps!r} and epochs={epochs!r} say the same thing. Say one of them."
            )
        if epochs is not None:
            self._set("steps", epochs)
        unit = 1 if steps_per_epoch is None else _checked("steps_per_epoch", steps_per_epoch, _ABOVE_0)
        unsaid = {field.name for field in fields(self) if field.default is UNSAID}
        for name, domain in _domains(type(self)).items():
            value = getattr(self, name)
            if value is not UNSAID or name not in unsaid:
                value = _checked(name, value, domain)
                self._set(name, _whole(value * unit) if domain.is_length else float(value))
        if self.steps is UNSAID:
            raise TypeError(f"{type(self).__name__} needs its length. {_LENGTH_ADVICE}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def length(self) -> float:
        """Finished steps after which the value stays as it is; infinite where it never does."""
        return self.steps

    def bends(self, last: float) -> Iterable[float]:
        """Return the steps at which another piece of the formula begins; those after `last` do not matter."""
        return ()

    def corners(self, horizon: float) -> list[float]:
        """Return both ends and the bends between them, as far as the horizon."""
        last = min(horizon, self.length)
        return sorted({n for n in (0, self.length, *self.bends(max(last, 0))) if n <= last})

    def __repr__(self) -> str:
        """Return the expression that makes it again."""
        words: list[str] = []
        in_order = True
        for field in sorted(fields(self), key=lambda field: field.kw_only is True):
            value = getattr(self, field.name)
            if value == field.default:
                in_order = False
            else:
                named = field.kw_only is True or not in_order
                words.append(f"{field.name}={value!r}" if named else repr(value))
        return f"{type(self).__name__}({', '.join(words)})"


def _checked(name: str, value: Any, domain: Domain) -> Any:
    """Return the number as Python's own int or float, or raise what is wrong with it."""
    if not isinstance(value, Real) or not domain.holds(float(value)):
        raise refusal(name, value, domain.allowed, domain.advice)
    return int(value) if isinstance(value, Integral) else float(value)


def _whole(steps: float) -> float:
    """Return a length as a whole number where it is one: 0.07 · 100 is 7, not 7.000000000000001."""
    if math.isinf(steps):
        return steps
    return round(steps) if math.isclose(steps, round(steps), rel_tol=1e-12) else float(steps)


def whole_steps(name: str, values: Iterable[float], steps_per_epoch: float | None) -> tuple[float, ...]:
    """Return several lengths in steps, each checked."""
    if isinstance(values, str) or not isinstance(values, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise refusal(name, values, "several steps", f"Try {name}=(30, 80).")
    return tuple(_whole(_checked(name, value, _FINITE) * (steps_per_epoch or 1)) for value in values)


MANY = 10_000
"""No more bends than this are listed: nobody reads them, and a short period may have a billion."""


def multiples(period: float, last: float) -> Iterable[float]:
    """Return 0, the period, twice the period and so on until `last`, but no more than `MANY`."""
    return (k * period for k in range(min(int(last // period), MANY) + 1))


# Several schedules as one. Each is a schedule again, so they nest.


@dataclass(frozen=True, repr=False)
class Then(Schedule):
    """One schedule after another; `first.then(second)` makes it."""

    first: Schedule
    second: Schedule

    def __post_init__(self) -> None:
        """Refuse what has no end to go on from."""
        for part in (self.first, self.second):
            _check_is_schedule(part)
        if self.first.length == math.inf:
            raise refusal("first", self.first, "a schedule that ends", "Try .until(1000) before .then(...).")

    @property
    def length(self) -> float:
        """The two lengths together."""
        return self.first.length + self.second.length

    @property
    def rise(self) -> float:
        """The warm-up of the first part."""
        return self.first.rise

    @property
    def open_ended(self) -> bool:
        """As the second part."""
        return self.second.open_ended

    def formula(self, n: float) -> float:
        """Return first(n) before the boundary and second(n − boundary) from it on."""
        boundary = self.first.length
        return self._before.at(n) if n < boundary else self.second.at(n - boundary)

    @cached_property
    def _before(self) -> Schedule:
        """The first part, a warm-up at the height of the second."""
        return self.first.leading_to(self.second)

    def leading_to(self, following: Schedule) -> Schedule:
        """Return both parts, the second at the height of what follows if it is a warm-up."""
        return Then(self.first, self.second.leading_to(following))

    def corners(self, horizon: float) -> list[float]:
        """Return the corners of both parts, the boundary once."""
        boundary = self.first.length
        later = [boundary + n for n in self.second.corners(horizon - boundary)]
        return sorted({*self.first.corners(horizon), *later})

    def __repr__(self) -> str:
        """Return the expression that makes it again."""
        return f"{self.first!r}.then({self.second!r})"


@dataclass(frozen=True, repr=False)
class Changed(Schedule):
    """Another schedule, seen differently."""

    schedule: Schedule

    @property
    def length(self) -> float:
        """As it was."""
        return self.schedule.length

    @property
    def rise(self) -> float:
        """As it was."""
        return self.schedule.rise

    @property
    def open_ended(self) -> bool:
        """As it was."""
        return self.schedule.open_ended

    def leading_to(self, following: Schedule) -> Schedule:
        """Return the same change of the schedule at the height of what follows."""
        return replace(self, schedule=self.schedule.leading_to(following))

    def corners(self, horizon: float) -> list[float]:
        """As they were."""
        return self.schedule.corners(horizon)


@dataclass(frozen=True, repr=False)
class Scaled(Changed):
    """A schedule times a constant; `schedule * factor` makes it."""

    factor: float

    def __post_init__(self) -> None:
        """Refuse a factor that is no number."""
        object.__setattr__(self, "factor", float(_checked("factor", self.factor, _FINITE)))

    @property
    def open_ended(self) -> bool:
        """Never: a warm-up times a constant has said its height."""
        return False

    def formula(self, n: float) -> float:
        """Return factor · schedule(n)."""
        return self.factor * self.schedule.at(n)

    def leading_to(self, following: Schedule) -> Schedule:
        """Return the schedule itself: a warm-up times a constant has said its height."""
        return self

    def __repr__(self) -> str:
        """Return the expression that makes it again."""
        return f"({self.schedule!r} * {self.factor!r})"


@dataclass(frozen=True, repr=False)
class Shifted(Changed):
    """A schedule moved to the right, or below 0 to the left; `schedule.shifted(steps)` makes it."""

    steps: float

    def __post_init__(self) -> None:
        """Refuse a shift that is no number."""
        object.__setattr__(self, "steps", _whole(_checked("steps", self.steps, _FINITE)))

    @property
    def length(self) -> float:
        """The steps that are left, never below 0."""
        return max(self.schedule.length + self.steps, 0)

    @property
    def rise(self) -> float:
        """What is left of a warm-up, and the wait before it."""
        return max(self.schedule.rise + self.steps, 0) if self.schedule.rise else 0

    def formula(self, n: float) -> float:
        """Return schedule(n − steps), and schedule(0) before."""
        return self.schedule.at(max(n - self.steps, 0))

    def corners(self, horizon: float) -> list[float]:
        """Return the corners where they are now."""
        moved = [n + self.steps for n in self.schedule.corners(horizon - self.steps)]
        return sorted({n for n in (0, *moved) if 0 <= n <= horizon})

    def __repr__(self) -> str:
        """Return the expression that makes it again."""
        return f"{self.schedule!r}.shifted({self.steps!r})"


@dataclass(frozen=True, repr=False)
class Until(Changed):
    """A schedule cut to a horizon, or held until a later one; `schedule.until(steps)` makes it."""

    steps: float

    def __post_init__(self) -> None:
        """Refuse a horizon inside the warm-up."""
        object.__setattr__(self, "steps", _whole(_checked("steps", self.steps, _ABOVE_0)))
        check_warmup(self.schedule.rise, self.steps)

    @property
    def length(self) -> float:
        """The horizon."""
        return self.steps

    def formula(self, n: float) -> float:
        """Return schedule(n); `at` never asks beyond the horizon."""
        return self.schedule.at(n)

    def corners(self, horizon: float) -> list[float]:
        """Return the corners up to the horizon, and the horizon itself."""
        inside = self.schedule.corners(min(self.steps, horizon))
        return sorted({*inside, self.steps} if self.steps <= horizon else {*inside})

    def __repr__(self) -> str:
        """Return the expression that makes it again."""
        return f"{self.schedule!r}.until({self.steps!r})"


@dataclass(frozen=True, repr=False)
class InEpochs(Changed):
    """A schedule said in epochs, read in steps; `schedule.in_epochs(steps_per_epoch)` makes it."""

    steps_per_epoch: float

    def __post_init__(self) -> None:
        """Refuse an epoch without steps."""
        unit = _whole(_checked("steps_per_epoch", self.steps_per_epoch, _ABOVE_0))
        object.__setattr__(self, "steps_per_epoch", unit)

    @property
    def length(self) -> float:
        """The length in steps."""
        return _whole(self.schedule.length * self.steps_per_epoch)

    @property
    def rise(self) -> float:
        """The warm-up in steps."""
        return _whole(self.schedule.rise * self.steps_per_epoch)

    def formula(self, n: float) -> float:
        """Return schedule(n / steps_per_epoch); it moves within an epoch too."""
        return self.schedule.at(n / self.steps_per_epoch)

    def corners(self, horizon: float) -> list[float]:
        """Return the corners in steps."""
        return [
            _whole(n * self.steps_per_epoch) for n in self.schedule.corners(horizon / self.steps_per_epoch)
        ]

    def __repr__(self) -> str:
        """Return the expression that makes it again."""
        return f"{self.schedule!r}.in_epochs({self.steps_per_epoch!r})"


def _check_is_schedule(part: object) -> None:
    if not isinstance(part, Schedule):
        raise TypeError(f"{part!r} is not a schedule. Try Constant({part!r}).")


def check_warmup(warmup: float, horizon: float) -> None:
    """Raise where a warm-up is longer than the horizon: the peak would never be reached."""
    if warmup > horizon:
        advice = f"Warm up for fewer steps, or train for at least {warmup} steps."
        raise refusal("warmup", warmup, f"within the horizon of {horizon} steps", advice)
