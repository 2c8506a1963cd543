"""What an optimizer remembers of arrays, by their keys in a flat checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np

from schuss.compile.formula import AVERAGE, Formula
from schuss.core import checkpoint
from schuss.core.averages import Pair
from schuss.core.matrices import check_matrix
from schuss.core.storage import WIDE, weight_storage
from schuss.numpy import storage
from schuss.numpy.layout import KERNEL_NAMES
from schuss.numpy.plan import Item, Plan, check_apart, check_gradient, check_weight
from schuss.numpy.tree import KeyMismatchError, Path, flat_key, name, pair
from schuss.rules import Rule

Array = np.ndarray[Any, Any]

# What to do with what is no matrix.
ALONE = "Give such arrays to an optimizer of their own, as AdamW."


@dataclass
class Entry:
    """What is remembered of one array: the shape it had, its row of the counts, and its slots by name."""

    shape: tuple[int, ...] | None
    index: int
    slots: dict[str, Array]


@dataclass
class State:
    """The entries of all arrays. `counts` has a row for each: its finished steps, then its rule's scalars.

    `unmatched` says that it was loaded, and not yet compared with the arrays.
    """

    counts: Array
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    unmatched: bool = False

    def planned(
        self,
        rule: Rule,
        formula: Formula,
        group: Mapping[str, Any],
        leaves: tuple[list[Path], list[Any], list[Any]],
    ) -> tuple[Plan, State]:
        """Check paths, weights and gradients; return how they take a step, and this state with what is new."""
        paths, weights, gradients = leaves
        keys = flat_keys(paths)
        if self.unmatched:
            checkpoint.settle(differing(set(self.entries), set(keys), "params"), True, KeyMismatchError)
        moving = {
            k: check_weight(paths[k], weights[k])
            for k, gradient in enumerate(gradients)
            if gradient is not None
        }
        check_apart([paths[k] for k in moving], list(moving.values()))
        for k, weight in moving.items():
            sparse = isinstance(gradients[k], tuple)
            check_matrix(
                formula, name("params", paths[k]), weight.shape, weight.dtype.kind == "c", ALONE, sparse
            )
            if not sparse:
                check_gradient(paths[k], weight, gradients[k])
        entries = dict(self.entries)
        for key in keys:
            entries.setdefault(key, Entry(None, len(entries), {}))
        items: list[Item] = []
        for k, weight in moving.items():
            entry = entries[keys[k]]
            check_shape(paths[k], weight, entry)
            whole = not isinstance(gradients[k], tuple)
            own = formula.for_axes(rule, weight.ndim)
            slots = _with_slots(entry.slots, rule, own, paths[k], weight, whole, group["state_dtype"])
            entries[keys[k]] = Entry(weight.shape, entry.index, slots)
            stored = weight_storage(KERNEL_NAMES[weight.dtype.name], group["rounding"], group["compensated"])
            arrays = storage.arrays(weight, stored, slots, own.slots, own.by_shape)
            items.append(Item(paths[k], weight, own, *arrays, k, entry.index))
        counts = np.zeros((len(entries), self.counts.shape[1]))
        counts[: len(self.counts)] = self.counts
        counts[counts[:, 0] == 0] = first_row(rule)
        return Plan(formula, paths, weights, gradients, items), State(counts, entries)

    def averages(self, params: Any, rule: Rule) -> list[Pair]:
        """The arrays of `params` that have an average, each with what works it out."""
        paths, weights, _ = pair(params, None)
        pairs: list[Pair] = []
        for path, key, weight in zip(paths, flat_keys(paths), weights, strict=True):
            entry = self.entries.get(key)
            if self.entries and entry is None:
                raise KeyMismatchError(
                    f"{name('params', path)} has no average: update has seen {', '.join(map(repr, self.entries))}. "
                    "Give the same dict as to update, or a part of it under the same keys."
                )
            names = rule.slots if rule.has_evaluated() else (AVERAGE,)
            if entry is not None and self.counts[entry.index, 0] and all(one in entry.slots for one in names):
                array = check_weight(path, weight)
                check_shape(path, array, entry)
                slots = [entry.slots[one] for one in names]
                average = partial(rule.evaluated, array) if rule.has_evaluated() else np.asarray
                pairs.append((array, partial(average, *slots)))
        return pairs


def _with_slots(
    slots: Mapping[str, Array],
    rule: Rule,
    formula: Formula,
    path: Path,
    weight: Array,
    whole: bool,
    state_dtype: str | None,
) -> dict[str, Array]:
    """What is remembered of an array, with every slot of the rule; int8 only if its gradient is `whole`."""
    first, found = rule.initial(), dict(slots)
    if (rule.shapes or formula.of_rows) and weight.dtype.kind == "c":
        raise ValueError(
            f"{name('params', path)} is {weight.dtype.name}, but {type(rule).__name__} takes means over rows and "
            "columns of real numbers. Give it the array's real and imaginary part as two arrays."
        )
    whole = whole and not formula.of_rows  # blocks would cross from row to row
    if not formula.averaged:
        found.pop(AVERAGE, None)  # of no meaning once the array has moved without it
    for slot in formula.slots:
        if slot not in found:
            if slot == AVERAGE:
                found[slot] = weight.astype(storage.new_dtype(weight, None))
                continue
            value = first.get(slot, 0.0)
            dtype = storage.new_dtype(weight, state_dtype, whole, slot in (*rule.precise, *rule.shapes))
            # Both parts of a complex number start alike: each is a number of its own to the rules.
            first_value = complex(value, value) if dtype.startswith("complex") else value
            found |= storage.new(slot, weight, dtype, first_value, rule.shapes.get(slot, ""))
        elif slot in rule.shapes and storage.name_of(found[slot]) not in WIDE:
            storage.convert(found, slot, "float32")
        elif (found[slot].dtype.kind == "c") != (weight.dtype.kind == "c"):
            raise ValueError(
                f"{name('params', path)} is {weight.dtype.name}, but its state {found[slot].dtype.name}. "
                "Use a new optimizer for new arrays."
            )
        elif found[slot].dtype == np.int8 and not whole:
            storage.convert(found, slot, "float32")
    return found


def flat_keys(paths: Sequence[Path]) -> list[str]:
    """The keys of a flat checkpoint, each checked to be one's own."""
    if not paths:
        raise ValueError("params has no arrays. Give a dict of arrays.")
    seen: dict[str, Path] = {}
    for path in paths:
        if any(not isinstance(key, str | int) for key in cast(tuple[object, ...], path)):
            raise TypeError(f"{name('params', path)} has a key that is neither a str nor an int.")
        key = flat_key(path)
        if key in seen:
            raise ValueError(
                f"{name('params', seen[key])} and {name('params', path)} would both be {key!r} in a checkpoint. "
                "Rename one."
            )
        seen[key] = path
    return list(seen)


def first_row(rule: Rule) -> list[float]:
    """What is remembered of an array as a whole before its first step."""
    return [0.0, *(rule.initial().get(scalar, 0.0) for scalar in rule.scalars)]


def check_shape(path: Path, weight: Array, entry: Entry) -> None:
    """Refuse an array of another shape than the one whose state this is."""
    if entry.shape is not None and entry.shape != weight.shape:
        raise ValueError(
            f"{name('params', path)} has shape {weight.shape}, but its state {entry.shape}. "
            "Use a new optimizer for new arrays."
        )


def differing(theirs: set[str], ours: set[str], what: str) -> Iterator[checkpoint.Problem]:
    """The arrays that only one of the two has."""
    for missing, where, there in (
        (ours - theirs, "The checkpoint", what),
        (theirs - ours, what, "the checkpoint"),
    ):
        if missing:
            yield checkpoint.Problem(
                f"{where} has no {', '.join(map(repr, sorted(missing)))}, but {there} has. "
                "Load a checkpoint of the same arrays.",
                absent=True,
                fatal=False,
            )
