"""What comes out of a checkpoint: a flat dict of arrays, checked by the table that both APIs share.

A checkpoint's `entries` says how many entries its arrays have, so that one that is lost on the way is missed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from schuss.compile.checkpoint import Check, Part, Problem, Weight
from schuss.numpy import kept
from schuss.numpy.layout import native
from schuss.numpy.tree import KeyMismatchError
from schuss.rules import Row

Array = np.ndarray[Any, Any]
RECORD = "entries"


class Arrays:
    """How a checkpoint's arrays are read."""

    def number(self, value: Any) -> int | float | None:
        """The real number that an array is, if it is one."""
        return value.item() if value.shape == () and value.dtype.kind == "f" else None

    def count(self, value: Any) -> int | float | None:
        """The whole number that an array is, if it is one."""
        return value.item() if value is not None and value.shape == () and value.dtype.kind in "iu" else None

    def shape(self, value: Any) -> tuple[int, ...] | None:
        """An array's shape."""
        return value.shape

    def dtype(self, value: Any) -> str:
        """The dtype of an array's numbers: "bfloat16" for its bits."""
        return kept.BITS.get(str(value.dtype.name), str(value.dtype.name))

    def least(self, value: Any) -> float:
        """The smallest number of an array."""
        if value.dtype.kind == "c":
            return min(self.least(value.real), self.least(value.imag), key=_nan_first)
        if not value.size:
            return 0.0
        return float((kept.widened(value) if value.dtype.name in kept.BITS else value).min())

    def most(self, value: Any) -> float:
        """The largest number of an array."""
        if value.dtype.kind == "c":
            return max(self.most(value.real), self.most(value.imag))
        return (
            float((kept.widened(value) if value.dtype.name in kept.BITS else value).max())
            if value.size
            else 0.0
        )


def _nan_first(number: float) -> float:
    return -math.inf if math.isnan(number) else number


def check_of(row: Row) -> Check:
    """The table of checks for one optimizer's checkpoints."""
    return Check(row.rule, {}, True, Arrays(), lambda key, part: f"'{key}/{part}'", ("float16",))


def weight_of(key: str, shape: tuple[int, ...] | None, slots: Mapping[str, Array]) -> Weight:
    """What is known of the array whose state is loaded: whether it is complex shows in the state that it has now."""
    kinds = {array.dtype.kind for array in slots.values()}
    return Weight(key, shape, None if not kinds else "complex128" if "c" in kinds else "float64")


def grouped(given: Mapping[str, Array], parts: Mapping[str, Part], row: Row) -> dict[str, dict[str, Array]]:
    """The entries of each array; words on what is none."""
    found: dict[str, dict[str, Array]] = {}
    for key, array in given.items():
        array_key, slash, part = str(key).rpartition("/")
        if not slash or part not in parts:
            own = sorted(name for name in parts if parts[name].kind in ("count", "number", "slot"))
            raise KeyMismatchError(
                f"The checkpoint has {key!r}, which {row.name} does not store: it stores "
                f"{', '.join(own)} of each array. Is it another optimizer's?"
            )
        found.setdefault(array_key, {})[part] = array
    return found


def copied(entry: Mapping[str, Array], parts: Mapping[str, Part]) -> dict[str, Array]:
    """What is remembered of one array by number, copied."""
    return {
        name: np.array(array, dtype=native(array), order="K")
        for name, array in entry.items()
        if parts[name].kind not in ("count", "number")
    }


def lost(
    counts: Mapping[str, int], found: Mapping[str, Mapping[str, Array]], known: Collection[str]
) -> Iterator[Problem]:
    """What of a whole checkpoint is missing: arrays, or entries of them."""
    if counts["finished"] and not found:
        yield Problem("The checkpoint has no arrays. Was it cut short?", absent=True, fatal=False)
    if known and found:
        yield from differing(set(found), set(known), "this optimizer")
    there = sum(map(len, found.values()))
    if there < counts.get(RECORD, 0):
        names = {name for parts in found.values() for name in parts}
        partly = [
            f"'{key}/{name}'" for name in sorted(names) for key, parts in found.items() if name not in parts
        ]
        some = f" It has no {', '.join(partly[:5])}." if partly else ""
        yield Problem(
            f"The checkpoint had {counts[RECORD]} entries of its arrays, and has {there}.{some} Was it cut short?",
            absent=True,
            fatal=False,
        )


def differing(theirs: set[str], ours: set[str], what: str) -> Iterator[Problem]:
    """The arrays that only one of the two has."""
    for missing, where, there in (
        (ours - theirs, "The checkpoint", what),
        (theirs - ours, what, "the checkpoint"),
    ):
        if missing:
            yield Problem(
                f"{where} has no {', '.join(map(repr, sorted(missing)))}, but {there} has. "
                "Load a checkpoint of the same arrays.",
                absent=True,
                fatal=False,
            )
