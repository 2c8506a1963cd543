"""What a schedule is: a pure function of the number of finished steps, and how several are put together.

A schedule has no state, so that resuming is calling it with the step, and a longer horizon is a new schedule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, InitVar, dataclass, fields, replace
from functools import cache, cached_property
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, get_type_hints

from schuss.errors import Domain, refusal


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
    def _formula(self, n: float) -> float:
        """The value after n steps, 0 ≤ n ≤ `length`."""

    @abstractmethod
    def corners(self, horizon: float) -> list[float]:
        """Return the steps up to `horizon` at which another piece of the curve begins, in order."""

    def at(self, n: float) -> float:
        """Return the value after n ≥ 0 steps: the formula, flat after its end."""
        return self._formula(n if self.length == math.inf else min(n, self.length))

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
        return Scaled(self, factor) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def leading_to(self, following: Schedule) -> Schedule:
        """Return what stands before `following`: itself, but a warm-up takes its height from it."""
        return self


# A schedule with parameters: what they may be, and in which unit its lengths are given.


class _Length(Domain):
    """A number of steps, or of epochs where `steps_per_epoch` is given."""


class _Horizon(_Length):
    """A length that may be infinite."""

    def holds(self, value: object) -> bool:
        return (isinstance(value, float) and value == math.inf) or super().holds(value)


_FINITE, _ABOVE_0 = Domain(), Domain(above=0)
_LENGTH_ADVICE = "Say steps=1000, or epochs=90 with steps_per_epoch=390."
Value = Annotated[float, _FINITE]
Positive = Annotated[float, _ABOVE_0]
NotNegative = Annotated[float, Domain(low=0)]
Fraction = Annotated[float, Domain(low=0, high=1)]
Rate = Annotated[float, Domain(above=0, high=1, advice="It multiplies the value again and again.")]
Length = Annotated[float, _Length(above=0)]
LengthOr0 = Annotated[float, _Length(low=0)]
UNSAID: Any = None
"""The default of a parameter that is derived from others, or must be given, when the schedule is constructed."""


@cache
def _domains(kind: type) -> dict[str, Domain]:
    """The domain of each parameter of a schedule, read from its annotations."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: hints[field.name].__metadata__[0]
        for field in fields(kind)
        if hasattr(hints[field.name], "__metadata__")
    }


@dataclass(frozen=True, repr=False)
class Parametric(Schedule):
    """A schedule with a formula of its own, checked at construction, its horizon said in steps or epochs.

    | here              | units         | domain | meaning                                                 |
    | `steps`           | steps         | > 0    | where it ends; optional where the formula has no end    |
    | `epochs`          | epochs        | > 0    | `steps`, said in epochs                                 |
    | `steps_per_epoch` | steps / epoch | > 0    | if given, *every* length given here is in epochs        |

    Lengths are stored in steps, whatever unit they were given in, so `repr` and `==` know steps only.
    """

    _: KW_ONLY
    steps: Annotated[float, _Horizon(above=0, advice=_LENGTH_ADVICE)] = math.inf
    epochs: InitVar[float | None] = None
    steps_per_epoch: InitVar[float | None] = None

    def __post_init__(self, epochs: float | None, steps_per_epoch: float | None) -> None:
        if epochs is not None:
            if steps_per_epoch is None:
                raise TypeError(
                    f"epochs={epochs!r} needs steps_per_epoch, for example steps_per_epoch=len(loader)."
                )
            if self.steps not in (UNSAID, math.inf):
                raise TypeError(
                    f"steps={self.steps!r} and epochs={epochs!r} say the same thing. Say one of them."
                )
            self._set("steps", epochs)
        unit = 1 if steps_per_epoch is None else _checked("steps_per_epoch", steps_per_epoch, _ABOVE_0)
        domains = _domains(type(self))
        for field in fields(self):
            value, domain = getattr(self, field.name), domains.get(field.name)
            if domain is None or (value is UNSAID and field.default is UNSAID):
                continue
            value = _checked(field.name, value, domain)
            if isinstance(domain, _Length):
                value = _whole(value * unit)
            elif not domain.choices:
                value = float(value)
            self._set(field.name, value)
        if self.steps is UNSAID:
            raise TypeError(f"{type(self).__name__} needs its length. {_LENGTH_ADVICE}")
        self._complete()
        check_warmup(self.rise, self.steps)

    def _complete(self) -> None:
        """Fill in what follows from other parameters, and refuse what does not go together."""

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def length(self) -> float:
        """Finished steps after which the value stays as it is; infinite where it never does."""
        return self.steps

    @property
    def rise(self) -> float:
        """The steps of `warmup`, where there is one."""
        return getattr(self, "warmup", 0)

    def _bends(self, last: float) -> Iterable[float]:
        """The steps at which another piece of the formula begins; those after `last` do not matter."""
        return (self.rise,)

    def corners(self, horizon: float) -> list[float]:
        """Return both ends and the bends between them, as far as the horizon."""
        last = min(horizon, self.length)
        return sorted({n for n in (0, self.length, *self._bends(max(last, 0))) if n <= last})

    def __repr__(self) -> str:
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
    """The value, a number as Python's own int or float, or the refusal of it."""
    if isinstance(value, Real):
        value = int(value) if isinstance(value, Integral) else float(value)
    domain.check(name, value)
    return value


def _whole(steps: float) -> float:
    """A length as a whole number where it is one: 0.07 · 100 is 7, not 7.000000000000001."""
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


def check_warmup(warmup: float, horizon: float) -> None:
    """Raise where a warm-up is longer than the horizon: the peak would never be reached."""
    if warmup > horizon:
        advice = f"Warm up for fewer steps, or train for at least {warmup} steps."
        raise refusal("warmup", warmup, f"within the horizon of {horizon} steps", advice)


# Several schedules as one. Each is a schedule again, so they nest.


@dataclass(frozen=True, repr=False)
class Then(Schedule):
    """One schedule after another; `first.then(second)` makes it."""

    first: Schedule
    second: Schedule

    def __post_init__(self) -> None:
        if not isinstance(self.second, Schedule):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{self.second!r} is not a schedule. Try Constant({self.second!r}).")
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

    def _formula(self, n: float) -> float:
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
        return f"{self.first!r}.then({self.second!r})"


@dataclass(frozen=True, repr=False)
class Changed(Schedule):
    """Another schedule, its time or its value changed by one number.

    `_inner` says which step of the schedule belongs to step n, and `_outer` the reverse.
    """

    schedule: Schedule
    by: float
    name: ClassVar[str] = "steps"
    domain: ClassVar[Domain] = _FINITE
    written: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", _whole(_checked(self.name, self.by, self.domain)))

    def _inner(self, n: float) -> float:
        return n

    def _outer(self, n: float) -> float:
        return n

    @property
    def length(self) -> float:
        """The length as it is now."""
        return self._outer(self.schedule.length)

    @property
    def rise(self) -> float:
        """The warm-up as it is now, with the wait before it."""
        return self._outer(self.schedule.rise) if self.schedule.rise else 0

    @property
    def open_ended(self) -> bool:
        """As it was."""
        return self.schedule.open_ended

    def _formula(self, n: float) -> float:
        return self.schedule.at(self._inner(n))

    def leading_to(self, following: Schedule) -> Schedule:
        """Return the same change of the schedule at the height of what follows."""
        return replace(self, schedule=self.schedule.leading_to(following))

    def corners(self, horizon: float) -> list[float]:
        """Return the corners where they are now."""
        moved = map(self._outer, self.schedule.corners(self._inner(horizon)))
        return sorted({n for n in (0, *moved) if n <= horizon})

    def __repr__(self) -> str:
        return self.written.format(self.schedule, self.by)


@dataclass(frozen=True, repr=False)
class Scaled(Changed):
    """A schedule times a constant; `schedule * factor` makes it. A warm-up's height is then said."""

    name = "factor"
    written = "({!r} * {!r})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", float(_checked(self.name, self.by, self.domain)))

    @property
    def open_ended(self) -> bool:
        """Never."""
        return False

    def _formula(self, n: float) -> float:
        return self.by * self.schedule.at(n)

    def leading_to(self, following: Schedule) -> Schedule:
        """Return the schedule itself."""
        return self


@dataclass(frozen=True, repr=False)
class Shifted(Changed):
    """A schedule moved to the right, or below 0 to the left; `schedule.shifted(steps)` makes it."""

    written = "{!r}.shifted({!r})"

    def _inner(self, n: float) -> float:
        return max(n - self.by, 0)

    def _outer(self, n: float) -> float:
        return max(n + self.by, 0)


@dataclass(frozen=True, repr=False)
class Until(Changed):
    """A schedule cut to a horizon, or held until a later one; `schedule.until(steps)` makes it."""

    domain = _ABOVE_0
    written = "{!r}.until({!r})"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_warmup(self.schedule.rise, self.by)

    @property
    def length(self) -> float:
        """The horizon."""
        return self.by

    def corners(self, horizon: float) -> list[float]:
        """Return the corners up to the horizon, and the horizon itself."""
        inside = self.schedule.corners(min(self.by, horizon))
        return sorted({*inside, self.by} if self.by <= horizon else {*inside})


@dataclass(frozen=True, repr=False)
class InEpochs(Changed):
    """A schedule said in epochs, read in steps; `schedule.in_epochs(steps_per_epoch)` makes it."""

    name = "steps_per_epoch"
    domain = _ABOVE_0
    written = "{!r}.in_epochs({!r})"

    def _inner(self, n: float) -> float:
        return n / self.by

    def _outer(self, n: float) -> float:
        return _whole(n * self.by)
