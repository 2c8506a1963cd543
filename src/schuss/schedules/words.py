"""Schedules in words: `warmup 500, cosine 9500 to 1e-5`.

    schedule = phase , phase , ...            `then` may stand for the comma
    phase    = name [length] clause ...       the length in steps
    clause   = word value                     to 1e-5, from 0.1, rate 0.5, milestones 30 80, shape sqrt

The words are the parameters of the schedules themselves, so a new schedule or parameter is known the day it is
written; `from` and `to` stand for the first and the last value. A phase starts where the one before ended;
the first, and the one after a warm-up, start at the peak.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, NamedTuple, cast

import schuss.schedules as schedules
from schuss.schedules.schedule import Page, Schedule


def _pages() -> dict[str, type[Page]]:
    kinds = [getattr(schedules, name) for name in schedules.__all__]
    return {kind.__name__.lower(): kind for kind in kinds if issubclass(kind, Page)}


PAGES = _pages()
SHORT = {
    "restarts": "cosinerestarts",
    "step": "stepdecay",
    "wsd": "warmupstabledecay",
    "hold": "constant",
    "rsqrt": "inversesqrt",
    "triangle": "cyclic",
}
_FIRST = ("start", "peak", "fraction")
_LAST = ("end", "turn")


def page_of(word: str) -> type[Page] | None:
    """The schedule that a word names, wherever schedules are named; None where it names none.

    >>> page_of("Cosine-Restarts") is page_of("restarts") is schedules.CosineRestarts
    True
    """
    return PAGES.get(SHORT.get(word.lower(), word.lower()).replace("-", ""))


class Word(NamedTuple):
    """A word and where it stands."""

    text: str
    at: int


class WordError(ValueError):
    """A word that is not understood: the message has the line, a caret under the word, and what is known."""

    def __init__(self, line: str, at: int, length: int, problem: str) -> None:
        """Draw the caret under `length` characters of the line from position `at` on."""
        super().__init__(f"{problem}\n  {line}\n  {' ' * at}{'^' * max(length, 1)}")
        self.at = at


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
    phases = _phases(line)
    schedule: Schedule | None = None
    value = peak
    for place, words in enumerate(phases):
        phase = _phase(line, words, value)
        value = (
            peak if isinstance(phase, schedules.Warmup) else phase(phase.length) if _ends(phase) else value
        )
        if not _ends(phase) and place < len(phases) - 1:
            name = words[0]
            problem = f"{name.text!r} never ends, and something follows. Say for how long: {name.text} 1000."
            raise WordError(line, name.at, len(name.text), problem)
        schedule = phase if schedule is None else schedule.then(phase)
    return cast(Schedule, schedule)


def _ends(schedule: Schedule) -> bool:
    return schedule.length < float("inf")


def _phases(line: str) -> list[list[Word]]:
    phases: list[list[Word]] = [[]]
    words = [Word(found[0], found.start()) for found in re.finditer(r",|[^\s,]+", line)]
    for word in words:
        if word.text not in (",", "then"):
            phases[-1].append(word)
        elif phases[-1]:
            phases.append([])
        else:
            raise WordError(
                line, word.at, len(word.text), f"A schedule is missing before {word.text!r}. {_KNOWN}"
            )
    if not phases[-1]:
        raise WordError(line, len(line.rstrip()), 1, f"A schedule is missing here. {_KNOWN}")
    return phases


_KNOWN = f"\nKnown: {', '.join(sorted(PAGES))}; for short {', '.join(f'{a} = {b}' for a, b in SHORT.items())}"


def _phase(line: str, words: list[Word], value: float) -> Schedule:
    """Read `name [length] clause ...`, starting at `value` unless it says from where."""
    name, *rest = words
    page = page_of(name.text)
    if page is None:
        raise _unknown(line, name, "a schedule", [*PAGES, *SHORT], _KNOWN)
    parameters = {field.name: field.type for field in fields(page)}
    said: dict[str, Any] = {}
    if rest and _is_number(rest[0].text):
        said["steps"] = _number(line, rest.pop(0))
    while rest:
        word = rest.pop(0)
        key = _parameter(word.text, parameters)
        if key is None:
            known = sorted({_spoken(name) for name in parameters})
            raise _unknown(line, word, f"a word of {name.text}", known, f"\nKnown: {', '.join(known)}")
        if key in said:
            raise WordError(line, word.at, len(word.text), f"{word.text!r} is said twice.")
        if not rest:
            raise WordError(line, len(line.rstrip()), 1, f"A value is missing after {word.text!r}.")
        if key == "milestones":
            said[key] = tuple(_number(line, w) for w in _take(rest, lambda w: _is_number(w.text)))
        else:
            said[key] = rest.pop(0).text if key == "shape" else _number(line, rest.pop(0))
    first = next((key for key in ("start", "peak") if key in parameters and _is_first(page, key)), None)
    if first is not None:
        said.setdefault(first, value)
    try:
        return page(**said)
    except (TypeError, ValueError) as error:
        last = words[-1]
        raise WordError(line, name.at, last.at + len(last.text) - name.at, str(error)) from error


def _is_first(page: type[Page], key: str) -> bool:
    return not next(field for field in fields(page) if field.name == key).kw_only


def _parameter(word: str, parameters: Iterable[str]) -> str | None:
    """Return the parameter that a word names; `from` and `to` name the one that this schedule has."""
    meant = {"from": _FIRST, "to": _LAST}.get(word.lower(), (word.lower(),))
    return next((key for key in meant if key in parameters), None)


def _spoken(parameter: str) -> str:
    return "from" if parameter in ("start", "fraction") else "to" if parameter in _LAST else parameter


def _take(words: list[Word], wanted: Callable[[Word], bool]) -> Iterable[Word]:
    yield words.pop(0)
    while words and wanted(words[0]):
        yield words.pop(0)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(line: str, word: Word) -> float:
    if not _is_number(word.text):
        raise WordError(line, word.at, len(word.text), f"{word.text!r} is not a number.")
    value = float(word.text)
    return int(value) if value.is_integer() else value


def _unknown(line: str, word: Word, what: str, known: Iterable[str], listing: str) -> WordError:
    near = difflib.get_close_matches(word.text.lower(), list(known), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return WordError(line, word.at, len(word.text), f"{word.text!r} is not {what}.{hint}{listing}")
