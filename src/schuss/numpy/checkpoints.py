"""What goes into a checkpoint, a flat dict of arrays, and what comes out of one.

A checkpoint's `entries` says how many entries its arrays have, so that one that is lost on the way is missed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from schuss.compile.storage import BLOCK
from schuss.core.checkpoint import (
    Arrays,
    Check,
    Part,
    Problem,
    Weight,
    check_block,
    check_count,
    settle,
)
from schuss.core.storage import IMPRECISE, widened
from schuss.numpy import storage
from schuss.numpy.layout import native
from schuss.numpy.state import Entry, State, differing, first_row
from schuss.numpy.tree import KeyMismatchError
from schuss.rules import Row, Rule

Array = np.ndarray[Any, Any]
RECORD = "entries"


class _Arrays(Arrays):
    def number(self, value: Any) -> int | float | None:
        return value.item() if value.shape == () and value.dtype.kind == "f" else None

    def count(self, value: Any) -> int | float | None:
        return value.item() if value is not None and value.shape == () and value.dtype.kind in "iu" else None

    def shape(self, value: Any) -> tuple[int, ...] | None:
        return value.shape

    def dtype(self, value: Any) -> str:
        return storage.BITS.get(str(value.dtype.name), str(value.dtype.name))

    def real(self, value: Any) -> Any:
        if not value.size:
            return None
        if value.dtype.kind == "c":
            return np.stack([value.real, value.imag])
        return storage.widened(value) if value.dtype.name in storage.BITS else value


def check_of(row: Row) -> Check:
    """The table of checks for one optimizer's checkpoints."""
    return Check(row.rule, {}, True, _Arrays(), lambda key, part: f"'{key}/{part}'", ("float16",))


def _grouped(given: Mapping[str, Array], parts: Mapping[str, Part], row: Row) -> dict[str, dict[str, Array]]:
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


def _lost(
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


def saved(row: Row, finished: int, skipped: int, state: State, state_dtype: Any) -> dict[str, Array]:
    """A copy of all that is remembered, as `state_dict` documents it."""
    found = {"optimizer": np.array(row.name), "finished": np.array(finished, dtype=np.int64)}
    if skipped:
        found["skipped"] = np.array(skipped, dtype=np.int64)
    every = [array for entry in state.entries.values() for array in entry.slots.values()]
    if state_dtype == "int8" or any(array.dtype == np.int8 for array in every):
        found["block_size"] = np.array(BLOCK, dtype=np.int64)
    for key, entry in state.entries.items():
        steps, *scalars = state.counts[entry.index]
        found[f"{key}/step"] = np.array(steps, dtype=np.int64)
        found |= {f"{key}/{n}": np.array(x) for n, x in zip(row.rule.scalars, scalars, strict=True)}
        found |= {f"{key}/{slot}": array.copy(order="K") for slot, array in entry.slots.items()}
    if state.entries:
        found[RECORD] = np.array(sum("/" in key for key in found), dtype=np.int64)
    return found


def loaded(
    state: Mapping[str, Any], row: Row, check: Check, rule: Rule, state_dtype: Any, now: State, strict: bool
) -> tuple[State, int, int, list[str]]:
    """The state in a checkpoint, checked and copied, its finished and skipped updates, and words on what starts afresh.

    `now` is the state that it replaces.
    """
    if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"The checkpoint is of type {type(state).__name__}. Give what state_dict() or numpy.load returned, or "
            "its file's name to load()."
        )
    given = {key: np.asarray(state[key]) for key in state}
    theirs = str(given.pop("optimizer", "of an unknown kind"))
    if theirs != row.name:
        raise ValueError(
            f"The checkpoint's 'optimizer' is {theirs}, this one is {row.name}. Load it into its own kind."
        )
    if "finished" not in given:
        raise KeyMismatchError("The checkpoint has no 'finished'. Was it made by state_dict()?")
    whole = {key: given.pop(key) for key in ("finished", "skipped", RECORD, "block_size") if key in given}
    numbers = {key: _Arrays().count(value) for key, value in whole.items()}
    in_blocks = whole.pop("block_size", None)
    counts = {key: check_count(f"The checkpoint's {key!r}", numbers[key], whole[key]) for key in whole}
    block = BLOCK
    if in_blocks is not None:
        block = check_block("The checkpoint's 'block_size'", numbers["block_size"], in_blocks)
    found = _grouped(given, check.parts, row)
    new = State(np.zeros((len(found), 1 + len(rule.scalars))))
    lost: list[str] = []
    for key, parts in found.items():
        known, index = now.entries.get(key), len(new.entries)
        if known is None and now.entries and not strict:
            continue  # an array that is not among this optimizer's, as the warning says
        about = Weight(key, known.shape if known else None, _field(known.slots if known else {}))
        missing = settle(check.problems(about, parts, rule, block), strict, KeyMismatchError)
        lost += missing
        if missing:
            new.entries[key], new.counts[index] = Entry(None, index, {}), first_row(rule)
            continue
        new.counts[index] = [float(parts[name]) for name in ("step", *rule.scalars)]
        slots = {
            name: np.array(array, dtype=native(array), order="K")
            for name, array in parts.items()
            if check.parts[name].kind not in ("count", "number")
        }
        shape = check.shape_of(slots)
        for slot in [one for one in slots if check.parts[one].kind == "slot"]:
            dtype, precise = storage.name_of(slots[slot]), slot in (*rule.precise, *rule.shapes)
            if state_dtype is not None and not (precise and state_dtype in IMPRECISE):
                asked = storage.new_dtype(slots[slot], state_dtype)
                # Where others are in blocks already, what is not had a reason: it is small, or has gradients of rows.
                dtype = dtype if asked == "int8" and in_blocks is not None else asked
            storage.convert(slots, slot, widened(dtype) if precise else dtype, block)
        new.entries[key] = Entry(about.shape if shape is None else shape, index, slots)
    lost += settle(_lost(counts, found, now.entries), strict, KeyMismatchError)
    new.counts = new.counts[: len(new.entries)]
    new.unmatched = bool(new.entries) and strict
    return new, counts["finished"], counts.get("skipped", 0), lost


def _field(slots: Mapping[str, Array]) -> str | None:
    """The dtype of an array as far as its state tells it: whether it is complex."""
    kinds = {array.dtype.kind for array in slots.values()}
    return None if not kinds else "complex128" if "c" in kinds else "float64"
