"""One voice for refusals: what was given, what is allowed, what to try."""

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


def refusal(name: str, value: object, allowed: str, advice: str = "") -> ValueError:
    """Return the `ValueError` that says `name=value` is not `allowed`, and what to try.

    >>> print(refusal("beta2", 1.0, "in [0, 1)", "With 1 the average would never learn."))
    beta2=1.0 is not in [0, 1). With 1 the average would never learn.
    """
    return ValueError(f"{name}={value!r} is not {allowed}." + (f" {advice}" if advice else ""))


class RuleError(ValueError):
    """A rule that cannot be compiled as it is written: the message names the file, the line and the remedy."""


def unknown(name: str, value: object, known: Iterable[str], advice: str = "") -> ValueError:
    """Return the refusal of a word that is not one of the `known` ones; it names the one that was meant, if any.

    >>> print(unknown("task", "digit", ["digits", "text"]))
    task='digit' is not one of digits, text. Did you mean digits?
    """
    known = list(known)
    near = closest(value, known)
    meant = f"Did you mean {near}?" if near else ""
    return refusal(name, value, f"one of {', '.join(known)}", " ".join(filter(None, (meant, advice))))


def closest(word: object, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the known word that `word` is a misspelling of, if there is one; capitals do not matter.

    >>> closest("adm", ["sgd", "adam"]), closest("Adam", ["sgd", "adam"]), closest("x", ["sgd", "adam"])
    ('adam', 'adam', None)
    """
    spelled = {one.lower(): one for one in known}
    found = difflib.get_close_matches(str(word).lower(), list(spelled), n=1, cutoff=likeness)
    return spelled[found[0]] if found else None


def whole(name: str, value: Any, least: int = 0, most: int | None = None, advice: str = "") -> int:
    """Return `value` as an int from `least` to `most`, or refuse it.

    >>> whole("steps", 10, 1)
    10
    """
    allowed = f"an integer ≥ {least}" if most is None else f"an integer in [{least}, {most}]"
    try:
        number = operator.index(value)
    except TypeError:
        raise refusal(name, value, allowed, advice) from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise refusal(name, value, allowed, advice)
    return number


def real(
    name: str, value: Any, allowed: str, holds: Callable[[float], bool] = math.isfinite, advice: str = ""
) -> float:
    """Return `value` as a float for which `holds` is true, or refuse it. A word that spells a number is none.

    >>> real("factor", 2, "a number > 0", lambda x: x > 0)
    2.0
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if math.isnan(number) or not holds(number):
        raise refusal(name, value, allowed, advice)
    return number


@dataclass(frozen=True)
class Domain:
    """The values that a parameter may have: numbers in an interval, one of some words, or True and False.

    >>> str(Domain(low=0, below=1)), Domain(low=0, below=1).holds(1)
    ('in [0, 1)', False)
    """

    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf
    above: float = -math.inf
    choices: tuple[str | None, ...] = ()
    kind: type = float
    advice: str = ""
    optional: bool = False

    def __str__(self) -> str:
        return f"None or {self._numbers()}" if self.optional else self._numbers()

    def _numbers(self) -> str:
        if self.kind is bool:
            return "True or False"
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        start = f"[{self.low:g}" if self.low > -math.inf else f"({self.above:g}"
        if self.below < math.inf:
            return f"in {start}, {self.below:g})"
        if self.high < math.inf:
            return f"in {start}, {self.high:g}]"
        if self.above > -math.inf:
            return f"a finite number > {self.above:g}"
        return f"a finite number ≥ {self.low:g}" if self.low > -math.inf else "a finite number"

    def holds(self, value: object) -> bool:
        """Whether the value is one of them; a number is a Python int or float."""
        if self.kind is bool:
            return isinstance(value, bool)
        if self.choices:
            return value in self.choices
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and self.low <= value <= self.high and self.above < value < self.below

    def check(self, name: str, value: object) -> None:
        """Refuse a value that is not one of them."""
        if not self.holds(value):
            raise refusal(name, value, str(self), self.advice)
