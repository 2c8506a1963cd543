"""Schedules in words: `warmup 500, cosine 9500 to 1e-5`.

    schedule = phase , phase , ...            `then` may stand for the comma
    phase    = name [length] clause ...       the length in steps
    clause   = word value                     to 1e-5, from 0.1, rate 0.5, milestones 30 80, shape sqrt

The words are the parameters of the schedules themselves, so a new schedule or parameter is known the day it is
written; `from` and `to` stand for the first and the last value. A phase starts where the one before ended;
the first, and the one after a warm-up, start at the peak.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, cast

import schuss.schedules as schedules
from schuss.errors import closest
from schuss.schedules.schedule import Parametric, Schedule

SCHEDULES: dict[str, type[Parametric]] = {
    name.lower(): getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"
}
SHORT = {
    "restarts": "cosinerestarts",
    "step": "stepdecay",
    "wsd": "warmupstabledecay",
    "hold": "constant",
    "rsqrt": "inversesqrt",
    "triangle": "cyclic",
}
_KNOWN = (
    f"\nKnown: {', '.join(sorted(SCHEDULES))}; for short {', '.join(f'{a} = {b}' for a, b in SHORT.items())}"
)
_FROM_TO = {"from": ("start", "peak", "fraction"), "to": ("end", "turn")}


def schedule_of(word: str) -> type[Parametric] | None:
    """The schedule that a word names, wherever schedules are named; None where it names none.

    >>> schedule_of("Cosine-Restarts") is schedule_of("restarts") is schedules.CosineRestarts
    True
    """
    return SCHEDULES.get(SHORT.get(word.lower(), word.lower()).replace("-", ""))


class WordError(ValueError):
    """A word that is not understood: the message has the line, a caret under the word, and what is known."""

    def __init__(self, line: str, start: int, end: int, problem: str) -> None:
        """Draw the carets under the characters of the line from `start` to `end`."""
        super().__init__(f"{problem}\n  {line}\n  {' ' * start}{'^' * max(end - start, 1)}")


def parse(line: str, peak: float = 1.0) -> Schedule:
    """Return the schedule that the words describe, its highest value `peak`.

    Raises `WordError` that points at the first word it does not understand.

    >>> parse("warmup 500, cosine 9500 to 1e-5", peak=3e-4)
    Warmup(500).then(Cosine(0.0003, 1e-05, steps=9500))
    >>> parse("hold 80 then linear 20")
    Constant(1.0, steps=80).then(Linear(1.0, steps=20))
    >>> parse("warmup 500, cosin 9500")
    Traceback (most recent call last):
    schuss.schedules.words.WordError: 'cosin' is not a schedule. Did you mean cosine?
    Known: ...
      warmup 500, cosin 9500
                  ^^^^^
    """
    phases: list[list[re.Match[str]]] = [[]]
    for word in re.finditer(r",|[^\s,]+", line):
        if word[0] not in (",", "then"):
            phases[-1].append(word)
        elif phases[-1]:
            phases.append([])
        else:
            raise _wrong(word, f"A schedule is missing before {word[0]!r}. {_KNOWN}")
    if not phases[-1]:
        raise _missing(line, f"A schedule is missing here. {_KNOWN}")
    schedule: Schedule | None = None
    value = peak
    for words in phases:
        phase, name = _phase(words, value), words[0]
        ends = phase.length < math.inf
        if not ends and words is not phases[-1]:
            raise _wrong(
                name, f"{name[0]!r} never ends, and something follows. Say for how long: {name[0]} 1000."
            )
        if isinstance(phase, schedules.Warmup):
            value = peak
        elif ends:
            value = phase(phase.length)
        schedule = phase if schedule is None else schedule.then(phase)
    return cast(Schedule, schedule)


def _phase(words: list[re.Match[str]], value: float) -> Schedule:
    """Read `name [length] clause ...`, starting at `value` unless it says from where."""
    name, *rest = words
    kind = schedule_of(name[0])
    if kind is None:
        raise _unknown(name, "a schedule", [*SCHEDULES, *SHORT], _KNOWN)
    parameters = {field.name: field for field in fields(kind)}
    said: dict[str, Any] = {}
    if rest and _is_number(rest[0]):
        said["steps"] = _number(rest.pop(0))
    while rest:
        word = rest.pop(0)
        meant = _FROM_TO.get(word[0].lower(), (word[0].lower(),))
        key = next((key for key in meant if key in parameters), None)
        if key is None:
            known = sorted(set(map(_spoken, parameters)))
            raise _unknown(word, f"a word of {name[0]}", known, f"\nKnown: {', '.join(known)}")
        if key in said:
            raise _wrong(word, f"{word[0]!r} is said twice.")
        if not rest:
            raise _missing(word.string, f"A value is missing after {word[0]!r}.")
        if key == "shape":
            said[key] = rest.pop(0)[0]
            continue
        values = [_number(rest.pop(0))]
        while key == "milestones" and rest and _is_number(rest[0]):
            values.append(_number(rest.pop(0)))
        said[key] = tuple(values) if key == "milestones" else values[0]
    first = next(
        (key for key in ("start", "peak") if key in parameters and not parameters[key].kw_only), None
    )
    if first is not None:
        said.setdefault(first, value)
    try:
        return kind(**said)
    except (TypeError, ValueError) as error:
        raise WordError(name.string, name.start(), words[-1].end(), str(error)) from error


def _spoken(parameter: str) -> str:
    """How a parameter is said; a peak is given by name."""
    return next(
        (word for word, names in _FROM_TO.items() if parameter in names and parameter != "peak"), parameter
    )


def _is_number(word: re.Match[str]) -> bool:
    try:
        float(word[0])
    except ValueError:
        return False
    return True


def _number(word: re.Match[str]) -> float:
    if not _is_number(word):
        raise _wrong(word, f"{word[0]!r} is not a number.")
    value = float(word[0])
    return int(value) if value.is_integer() else value


def _wrong(word: re.Match[str], problem: str) -> WordError:
    return WordError(word.string, word.start(), word.end(), problem)


def _missing(line: str, problem: str) -> WordError:
    end = len(line.rstrip())
    return WordError(line, end, end + 1, problem)


def _unknown(word: re.Match[str], what: str, known: Iterable[str], listing: str) -> WordError:
    near = closest(word[0], known)
    hint = f" Did you mean {near}?" if near else ""
    return _wrong(word, f"{word[0]!r} is not {what}.{hint}{listing}")
