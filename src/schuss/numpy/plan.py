"""Which memory an update walks over: found once, checked at every update, found anew when anything moved.

Where weight, gradient and state lie alike in memory, the kernel is pointed at them. What lies otherwise goes through a
contiguous copy, in and out. So do small gradients: to copy one is quicker than to ask NumPy for its address.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, cast

import numpy as np

from schuss.compile import cpu, norm, threads
from schuss.compile.formula import Formula
from schuss.compile.launch import Launch, Terms, TouchedRows, WholeTensors
from schuss.compile.matrices import matrix_shape
from schuss.compile.storage import Column, columns, compute_dtype
from schuss.core.arguments import for_sparse
from schuss.core.norm import combined
from schuss.core.storage import apart
from schuss.errors import refusal
from schuss.numpy.layout import KERNEL_NAMES, address, bounds, empty, has_kernel, length, lies, native
from schuss.numpy.sparse import touched
from schuss.numpy.tree import Path, name
from schuss.rules import Rule

Array = np.ndarray[Any, Any]

# Up to this many elements a gradient is copied.
SMALL = 1024

_kind = attrgetter("dtype", "shape")
_layout = attrgetter("dtype", "shape", "strides", "flags.num")
_strides = attrgetter("strides", "flags.aligned")


@dataclass
class Item:
    """One weight with a gradient: its formula, its state, laid out in `axes`, its place among the leaves, and its row
    of the counts.

    `storage` is that of the weight and of each slot; `slots` are the arrays of the slots, then their auxiliary buffers.
    """

    path: Path
    weight: Array
    formula: Formula
    axes: tuple[int, ...]
    storage: tuple[str, ...]
    slots: list[Array]
    leaf: int
    index: int


def check_weight(path: Path, weight: Any) -> Array:
    """The weight as a plain array, or the error that says why it cannot be moved in place."""
    where = name("params", path)
    if not isinstance(weight, np.ndarray):
        raise TypeError(
            f"{where} is of type {type(weight).__name__}, which cannot be changed in place. Give a NumPy array."
        )
    _check_numbers(where, weight)
    array = np.asarray(weight)
    if not array.flags.writeable:
        raise ValueError(f"{where} is read-only, so it cannot be updated in place. Try {where}.copy().")
    if not apart(array.shape, array.strides, array.itemsize):
        raise ValueError(f"{where} has elements that share memory with each other. Try {where}.copy().")
    return array


def _check_numbers(where: str, array: Array) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{where} is a masked array, whose mask would be ignored. Give a plain array.")
    if not has_kernel(array):
        advice = f"Try {where}.astype(float)." if array.dtype.kind in "iub" else ""
        raise refusal(f"{where} dtype", array.dtype.name, f"one of {', '.join(KERNEL_NAMES)}", advice)


def check_apart(paths: Sequence[Path], weights: Sequence[Array]) -> None:
    """Refuse weights that share memory: a step would move the same number twice."""
    stretches = sorted((*bounds(weight), k) for k, weight in enumerate(weights) if weight.size)
    for position, (_, end, k) in enumerate(stretches):
        for start, _, other in stretches[position + 1 :]:
            if start >= end:
                break
            if _share(weights[k], weights[other]):
                one, two = sorted((k, other))
                raise ValueError(
                    f"{name('params', paths[one])} and {name('params', paths[two])} share memory, which would be moved "
                    "twice. Give each array once; for a shared weight, under one key with the sum of its gradients."
                )


def _share(one: Array, two: Array) -> bool:
    try:
        return np.shares_memory(one, two, max_work=cast(Any, 10**6))
    except np.exceptions.TooHardError:
        return True


def check_gradient(path: Path, weight: Array, gradient: Any) -> None:
    """Refuse a dense gradient that does not fit its weight."""
    where = name("grads", path)
    if not isinstance(gradient, np.ndarray | np.generic | float):
        raise TypeError(
            f"{where} is of type {type(gradient).__name__}. Give an array, None for no gradient this time, or "
            "(indices, values) for some rows."
        )
    array = gradient if isinstance(gradient, np.ndarray) else np.asarray(gradient)
    _check_numbers(where, array)
    _check_field(where, path, weight, array)
    if array.shape != weight.shape:
        raise ValueError(
            f"{where} has shape {array.shape}, but {name('params', path)} has {weight.shape}. They must be the same."
        )


def _check_field(where: str, path: Path, weight: Array, gradient: Array) -> None:
    if (gradient.dtype.kind == "c") != (weight.dtype.kind == "c"):
        raise ValueError(
            f"{where} is {gradient.dtype.name}, but {name('params', path)} is {weight.dtype.name}. "
            "Give both real, or both complex."
        )


Signature = tuple[Formula, tuple[str, ...]]


def _signature(item: Item, gradient: Array) -> Signature:
    return item.formula, (item.storage[0], KERNEL_NAMES[gradient.dtype.name], *item.storage[1:])


def _columns(signature: Signature) -> list[Column]:
    return columns(("w", "g", *signature[0].slots), signature[1])


class _Memory:
    """The memory of all weights, to be asked whether a gradient shares any of it."""

    def __init__(self, weights: Sequence[Array]) -> None:
        stretches = np.array(sorted(map(bounds, weights)), dtype=np.int64).reshape(-1, 2)
        self.starts = stretches[:, 0]
        self.ends = np.maximum.accumulate(np.append(0, stretches[:, 1]))

    def shared(self, starts: Array, ends: Array) -> bool:
        """Whether any of these stretches reaches into the weights' stretches."""
        return bool((self.ends[np.searchsorted(self.starts, ends)] > starts).any())

    def holds(self, array: Array) -> bool:
        """Whether the array may share memory with a weight."""
        start, end = bounds(array)
        return self.shared(np.array([start]), np.array([end]))


class _Batch:
    """Dense gradients whose weights one kernel moves together."""

    def __init__(
        self, signature: Signature, items: list[Item], gradients: Sequence[Any], memory: _Memory
    ) -> None:
        self.memory = memory
        lengths = [length(item.weight) for item in items]
        shapes = [matrix_shape(item.weight.shape) for item in items]
        one, stored = signature
        real, groups = compute_dtype(stored), [0] * len(items)
        sides = [item.weight.shape[-2:] for item in items]
        self.table = WholeTensors(_columns(signature), lengths, one.passes, shapes, groups, real, sides)
        indices = [item.index for item in items]
        self.launch = Launch(signature[0], cpu.kernel(*signature), self.table, groups, indices)
        self.weights_in: list[tuple[Array, Array]] = []
        self.gradients_in: list[tuple[Array, int]] = []
        self.direct: list[int] = []  # which of the items
        columns: list[list[Array]] = [[] for _ in self.table.columns]
        for k, item in enumerate(items):
            gradient = np.asarray(gradients[item.leaf])
            weight = item.weight
            if not lies(weight, item.axes):
                weight = empty(weight.shape, native(weight), item.axes)
                self.weights_in.append((weight, item.weight))
            if gradient.size > SMALL and lies(gradient, item.axes) and not memory.holds(gradient):
                self.direct.append(k)
            else:
                gradient = empty(gradient.shape, native(gradient), item.axes)
                self.gradients_in.append((gradient, item.leaf))
            for column, array in zip(columns, (weight, gradient, *item.slots), strict=True):
                column.append(array)
        self.addresses = [np.array(list(map(address, column)), dtype=np.int64) for column in columns]
        for column, here in enumerate(self.addresses):
            self.table.place(column, here)
        self.every = [item.leaf for item in items]
        self.slots = columns[2:]  # a table holds addresses only: keep the memory alive
        pointed = [columns[1][k] for k in self.direct]
        self.leaves = [items[k].leaf for k in self.direct]
        self.strides = list(map(_strides, pointed))
        self.sizes = np.array([array.nbytes for array in pointed], dtype=np.int64)
        self.moving = [address(array) for array in pointed]

    def fits(self, gradients: Sequence[Any]) -> bool:
        """Point at this update's gradients; False if any no longer lies as it did."""
        if not self.leaves:
            return True
        mine = [gradients[k] for k in self.leaves]
        if list(map(_strides, mine)) != self.strides:
            return False
        moving = list(map(address, mine))
        if moving != self.moving:
            here = np.array(moving, dtype=np.int64)
            if self.memory.shared(here, here + self.sizes):
                return False
            self.addresses[1][self.direct] = here
            self.table.place(1, self.addresses[1])
            self.moving = moving
        return True

    def prepare(self, gradients: Sequence[Any]) -> None:
        """Copy in what the kernel cannot be pointed at."""
        for copy, weight in self.weights_in:
            copy[...] = weight
        for copy, leaf in self.gradients_in:
            copy[...] = gradients[leaf]

    def given(self, gradients: Sequence[Any]) -> list[Array]:
        """The gradients that move these weights."""
        return [np.asarray(gradients[k]) for k in self.every]

    def returning(self) -> list[partial[None]]:
        """What copies back what was copied in."""
        return [partial(weight.__setitem__, ..., copy) for copy, weight in self.weights_in]


class _Touched:
    """One weight of which a sparse gradient moves some rows, at one update."""

    def __init__(self, item: Item, gradient: tuple[Any, ...], memory: _Memory) -> None:
        where = name("grads", item.path)
        self.rows, values = touched(where, item.weight, gradient)
        _check_numbers(where, values)
        _check_field(where, item.path, item.weight, values)
        values = np.require(values, requirements="A")
        self.values = values.copy() if memory.holds(values) else values
        arrays = [item.weight, *item.slots]
        straight = tuple(range(item.weight.ndim))
        # What is not one stretch of whole rows lends its touched rows, packed.
        self.lent = [None if lies(array, straight) else array for array in arrays]
        self.here = [
            array if lent is None else np.ascontiguousarray(array[self.rows], dtype=native(array))
            for array, lent in zip(arrays, self.lent, strict=True)
        ]
        signature = _signature(item, self.values)
        width = length(item.weight[:1]) if len(item.weight) else 0
        table = TouchedRows(_columns(signature), self.rows, width)
        table.place(1, address(self.values), packed=True)
        for column, array, lent in zip((0, *range(2, len(arrays) + 1)), self.here, self.lent, strict=True):
            table.place(column, address(array), packed=lent is not None)
        self.launch = Launch(item.formula, cpu.kernel(*signature), table, [0], [item.index])

    def given(self, gradients: Sequence[Any]) -> list[Array]:
        """The gradients that move these rows: of each row one."""
        del gradients
        return [self.values]

    def returning(self) -> list[partial[None]]:
        """What gives back the rows that were lent."""
        return [
            partial(lent.__setitem__, self.rows, array)
            for array, lent in zip(self.here, self.lent, strict=True)
            if lent is not None
        ]


Work = list[tuple[_Batch | _Touched, Rule]]


def _norm(gradient: Array) -> float:
    """One gradient's norm, in float64 and without overflow."""
    size = (
        np.abs(gradient, dtype=np.float64) if gradient.dtype.kind == "f" else np.abs(gradient.astype(complex))
    )
    most = float(size.max(initial=0.0))
    return most * float(np.linalg.norm(size / most)) if 0 < most < math.inf else most


class Plan:
    """How one set of weights takes an update. `items` are those with gradients."""

    def __init__(
        self,
        formula: Formula,
        paths: list[Path],
        weights: list[Any],
        gradients: list[Any],
        items: list[Item],
    ) -> None:
        """Compile or find the kernels, and write down where everything is."""
        self.formula, self.paths, self.weights = formula, paths, weights
        self.moved = [weights[item.leaf] for item in items]
        # `ndarray.resize` moves no array that is weakly referenced, whatever its `refcheck` says: what
        # was resized there and back would look as it did, and lie elsewhere.
        self.still = list(map(weakref.ref, self.moved))
        self.layouts = list(map(_layout, self.moved))
        self.types = list(map(type, gradients))
        self.arrays = [k for k, gradient in enumerate(gradients) if isinstance(gradient, np.ndarray)]
        self.all_arrays = len(self.arrays) == len(gradients)
        self.kinds = [_kind(gradients[k]) for k in self.arrays]
        self.memory = _Memory([item.weight for item in items])
        self.sparse = [item for item in items if isinstance(gradients[item.leaf], tuple)]
        batches: dict[Signature, list[Item]] = {}
        for item in items:
            if not isinstance(gradients[item.leaf], tuple):
                gradient = np.asarray(gradients[item.leaf])
                batches.setdefault(_signature(item, gradient), []).append(item)
        self.dense = [_Batch(*batch, gradients, self.memory) for batch in batches.items()]

    def fits(self, formula: Formula, paths: list[Path], weights: list[Any], gradients: list[Any]) -> bool:
        """Whether all is as it was, but for the numbers and where large gradients are: it then points at these."""
        return (
            formula is self.formula
            and paths == self.paths
            and list(map(id, weights)) == list(map(id, self.weights))
            and list(map(_layout, self.moved)) == self.layouts
            and list(map(type, gradients)) == self.types
            and list(map(_kind, gradients if self.all_arrays else [gradients[k] for k in self.arrays]))
            == self.kinds
            and all(batch.fits(gradients) for batch in self.dense)
        )

    def prepare(self, gradients: list[Any], rule: Rule, conventions: tuple[tuple[str, Any], ...]) -> Work:
        """What is to be moved, and by which rule. Refuses all that can be refused; no weight has moved then."""
        work: Work = []
        if self.sparse:
            lazy = for_sparse(rule, conventions, self.formula)
            work = [(_Touched(item, gradients[item.leaf], self.memory), lazy) for item in self.sparse]
        for batch in self.dense:
            batch.prepare(gradients)
            work.append((batch, rule))
        return work

    def norm(self, work: Work, gradients: list[Any], workers: int) -> float:
        """The norm of all gradients together, each read once; NaN or infinite if one of their numbers is."""
        total = sum(norm.square(part.launch.table, workers) for part, _ in work)
        return combined(total, (_norm(gradient) for part, _ in work for gradient in part.given(gradients)))

    def step(self, work: Work, counts: Array, options: Terms, workers: int, counting: partial[None]) -> None:
        """Move every weight once, and count it. What is wrong with a rule is raised before anything is changed."""
        launches: list[Launch] = []
        actions: list[Any] = []
        for part, rule in work:
            part.launch.prepare(counts, [rule], [options])
            launches.append(part.launch)
        for launch in launches:
            actions.append(launch.counting(counts))
        actions.append(counting)
        for launch in launches:
            actions.append(launch.moving(workers))
        for part, _ in work:
            actions += part.returning()
        threads.together(actions)
        for launch in launches:
            launch.taken(counts)
