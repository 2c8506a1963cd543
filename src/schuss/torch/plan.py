"""Which memory a step runs over: found once, checked before every step, found anew when anything is other.

Most tensors are plain: weight, gradient and state lie alike in memory, and the kernel is pointed at them, on a GPU one
of its own. The others get the right answer by another path, one by one at each step: *staged* tensors lie differently
and go through copies, *sparse* gradients touch some rows only, and *eager* ones are on a device or of a dtype without
a kernel.

A step is prepared, then taken. What can be refused is refused before: when a plan is made (`checks`), when the rows of
sparse gradients are checked, and when the scalars are worked out. From then on everything moves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from schuss.compile import cpu, device, eager, threads
from schuss.compile.formula import Formula
from schuss.compile.launch import TENSOR_BITS, Launch, Table, Terms, TouchedRows, WholeTensors, numbers
from schuss.compile.matrices import matrix_shape
from schuss.compile.storage import PLAIN, STORAGES, Column, columns, compute_dtype, drawn
from schuss.core.storage import dtype_name
from schuss.rules import Rule
from schuss.torch import layout
from schuss.torch.checks import check_rows
from schuss.torch.layout import lazy
from schuss.torch.norm import norm_of

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]

_address = Tensor.data_ptr
_contiguous = Tensor.is_contiguous

# A complex number is two real ones, which the rules move one by one.
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_NAMES = {getattr(torch, name): name for name in PLAIN}
_KERNEL_DTYPES = frozenset(_NAMES) | frozenset(_REAL) | {torch.int8, torch.int16}


@dataclass
class Item:
    """One weight with a gradient: its state, its group, and its index among all weights, its row of the counts.

    `storage` is that of the weight and of each slot; `slots` are the slots' tensors, then their auxiliary buffers.
    """

    weight: Tensor
    slots: list[Tensor]
    storage: tuple[str, ...]
    formula: Formula
    group: int
    index: int

    def path(self, gradient: Tensor) -> str:
        """How this weight is moved: "plain", "gpu", "staged", "sparse" or "eager"."""
        if gradient.layout == torch.sparse_coo:
            return "sparse"
        tensors = (self.weight, gradient, *self.slots)
        if not all(one in STORAGES for one in self.storage) or not all(map(_has_kernel, tensors)):
            return "eager"
        straight = all(map(_contiguous, tensors)) and not any(map(lazy, tensors))
        if self.formula.by_shape and not (straight and self.weight.device.type == "cpu"):
            return "eager"
        if device.runs_on(self.weight.device):
            alike = not self.in_blocks and all(_lies_like(t, self.weight) for t in tensors)
            return "gpu" if straight or alike else "eager"
        return "plain" if straight else "staged"

    @property
    def in_blocks(self) -> bool:
        """Whether a slot is in int8 blocks, which are counted row by row, however the weight lies in memory."""
        return "int8" in self.storage

    def signature(self, gradient: Tensor) -> Signature:
        """What has a kernel in common."""
        return self.formula, (self.storage[0], _name(gradient), *self.storage[1:])

    def start(self) -> int:
        """The position of the weight's first element among all."""
        return self.index << TENSOR_BITS

    def facts(self, gradient: Tensor | None) -> Any:
        """All that decided its path, and where its state is."""
        written = self.weight, *self.slots
        return list(map(layout.facts, (*written, gradient))), list(map(layout.address, written))


def _has_kernel(tensor: Tensor) -> bool:
    return (
        layout.in_memory(tensor)
        and (tensor.device.type == "cpu" or device.runs_on(tensor.device))
        and tensor.dtype in _KERNEL_DTYPES
    )


def _lies_like(tensor: Tensor, other: Tensor) -> bool:
    """Whether both fill memory in the same order, on the same device."""
    alike = (_contiguous(tensor) and _contiguous(other)) or (
        tensor.stride() == other.stride() and _dense(other)
    )
    return alike and tensor.device == other.device and not lazy(tensor)


def _dense(tensor: Tensor) -> bool:
    """Whether the tensor fills one stretch of memory, in whatever order."""
    return torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


def _length(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.dtype in _REAL else 1)


def _name(tensor: Tensor) -> str:
    dtype = _REAL.get(tensor.dtype, tensor.dtype)
    return _NAMES.get(dtype) or dtype_name(dtype)


Signature = tuple[Formula, tuple[str, ...]]


def _by_signature(pairs: Sequence[tuple[Item, Tensor]]) -> list[tuple[Signature, list[Item]]]:
    """What one kernel can move together; complex weights apart from real ones."""
    batches: dict[Any, tuple[Signature, list[Item]]] = {}
    for item, gradient in pairs:
        signature = item.signature(gradient)
        key = (signature, gradient.dtype, gradient.device)
        batches.setdefault(key, (signature, []))[1].append(item)
    return list(batches.values())


def _columns(signature: Signature) -> list[Column]:
    return columns(("w", "g", *signature[0].slots), signature[1])


def _launch(signature: Signature, items: Sequence[Item], table: Table) -> Launch:
    groups, indices = [item.group for item in items], [item.index for item in items]
    launch = Launch(signature[0], cpu.kernel(*signature), table, groups, indices)
    launch.library = torch.from_numpy
    return launch


def _whole(signature: Signature, items: Sequence[Item]) -> WholeTensors:
    lengths = [_length(item.weight) for item in items]
    shapes = [matrix_shape(item.weight.shape) for item in items]
    groups = [item.group for item in items]
    formula, kept = signature
    real, sides = compute_dtype(kept), [item.weight.shape[-2:] for item in items]
    return WholeTensors(_columns(signature), lengths, formula.passes, shapes, groups, real, sides)


class _Plain:
    """Tensors of one signature that lie alike in memory: one table, which stands as long as their memory does.

    Replaced entries of the state are noted where they are replaced (`State`).
    """

    def __init__(self, signature: Signature, items: list[Item], gradients: list[Any]) -> None:
        self.places = [item.index for item in items]
        self.whole = self.places == list(range(len(items)))
        self.weights = [item.weight for item in items]
        self.table, self.launch = self._made(signature, items)
        columns = [self.weights, *map(list, zip(*(item.slots for item in items), strict=True))]
        self.memory = layout.memory(
            [tensor for column in columns for tensor in column], [gradients[k] for k in self.places]
        )
        for column, tensors in zip((0, *range(2, len(columns) + 1)), columns, strict=True):
            self.table.place(column, np.array(list(map(_address, tensors)), dtype=np.int64))
        # A contiguous tensor can be noted as conjugate or negative where it is complex or one number (an imaginary
        # part).
        self.doubted = [
            (k, [item.weight, *item.slots])
            for k, item in enumerate(items)
            if item.weight.is_complex() or item.weight.numel() == 1
        ]
        self.fits(gradients)

    def _made(self, signature: Signature, items: list[Item]) -> tuple[Any, Launch]:
        table = _whole(signature, items)
        return table, _launch(signature, items, table)

    def fits(self, gradients: list[Any]) -> bool:
        """Point at this step's gradients; False if anything no longer lies as it did."""
        whole = self.whole and len(gradients) == len(self.places)
        mine = gradients if whole else [gradients[k] for k in self.places]
        memory = self.memory
        if not memory.fits(mine):
            return False
        for k, written in self.doubted:
            if lazy(mine[k]) or any(map(lazy, written)):
                return False
        if memory.moved:
            self.table.place(1, memory.addresses)
            memory.moved = False
        return True


class _Device(_Plain):
    """Tensors of one signature on one GPU."""

    def _made(self, signature: Signature, items: list[Item]) -> tuple[Any, Launch]:
        launch = device.DeviceLaunch(
            *signature,
            [_length(item.weight) for item in items],
            [item.group for item in items],
            [item.index for item in items],
            self.weights[0].device,
            [matrix_shape(item.weight.shape) for item in items],
        )
        return launch.tensors, launch


# Tensors that are moved in a copy, each with it.
Back = list[tuple[Tensor, Tensor]]


class _Staged:
    """Tensors of one signature that do not lie alike: what differs goes through a copy, in and out."""

    def __init__(self, signature: Signature, items: list[Item]) -> None:
        self.items = items
        self.table = _whole(signature, items)
        self.launch = _launch(signature, items, self.table)

    def lay(self, gradients: Sequence[Any]) -> Back:
        """Copy in what does not lie as its weight, and point at it; return what is to be copied back."""
        alike: list[list[Tensor]] = []
        back: Back = []
        for item in self.items:
            weight = item.weight
            straight = _contiguous(weight) or (_dense(weight) and not item.in_blocks)
            model = (
                weight
                if straight and not lazy(weight)
                else torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            )

            def laid(tensor: Tensor, written: bool, model: Tensor = model) -> Tensor:
                if tensor is model or (tensor.stride() == model.stride() and not lazy(tensor)):
                    return tensor
                if tensor.shape != model.shape:  # the scales of blocks
                    return tensor
                copy = torch.empty_strided(
                    model.shape, model.stride(), dtype=tensor.dtype, device=tensor.device
                ).copy_(tensor)
                if written:
                    back.append((tensor, copy))
                return copy

            alike.append(
                [
                    laid(weight, True),
                    laid(gradients[item.index], False),
                    *(laid(slot, True) for slot in item.slots),
                ]
            )
        self.alike = alike  # a table holds addresses only: keep the memory alive
        addresses = np.array([list(map(_address, tensors)) for tensors in alike], dtype=np.int64)
        for column, here in enumerate(addresses.T):
            self.table.place(column, here)
        return back


def _row_numbers(gradient: Tensor, outer: Sequence[int]) -> Array:
    return np.asarray(np.ravel_multi_index(tuple(gradient._indices().numpy()), tuple(outer)))


def _touched(item: Item, gradient: Tensor) -> tuple[Launch, Back, list[Tensor]]:
    """What moves the touched rows only, a row of the table being a row of the weight; and the memory that it needs."""
    outer, inner = item.weight.shape[: gradient.sparse_dim()], item.weight.shape[gradient.sparse_dim() :]
    rows = _row_numbers(gradient, outer)
    if not gradient.is_coalesced() and (np.diff(np.sort(rows)) == 0).any():
        gradient = gradient.coalesce()
        rows = _row_numbers(gradient, outer)
    values = gradient._values().resolve_conj().resolve_neg().contiguous()
    width = math.prod(inner) * (2 if item.weight.dtype in _REAL else 1)
    written = [item.weight, *item.slots]
    flat = [
        t if _contiguous(t) and not lazy(t) else t.clone(memory_format=torch.contiguous_format)
        for t in written
    ]
    signature = item.signature(values)
    table = TouchedRows(_columns(signature), rows, width)
    table.place(1, values.data_ptr(), packed=True)
    for column, tensor in zip((0, *range(2, len(flat) + 1)), flat, strict=True):
        table.place(column, tensor.data_ptr())
    back = [(tensor, copy) for tensor, copy in zip(written, flat, strict=True) if tensor is not copy]
    return _launch(signature, [item], table), back, [values, *flat]


@dataclass
class _Eager:
    """One weight that whole tensors move, one operation after another, with the scalars of its step."""

    item: Item
    gradient: Tensor
    rule: Rule
    row: list[float]
    remembered: list[float]

    def writing(self) -> list[partial[Any]]:
        """What writes its new numbers, which are worked out here."""
        item, gradient = self.item, self.gradient
        written = [item.weight, *item.slots]
        here = item.weight.device
        if gradient.layout != torch.sparse_coo:
            starts = torch.tensor([item.start()], device=here)
            stored = item.signature(gradient)[1]
            memory = [written[0], gradient, *written[1:]]
            return _copying(eager.moved(item.formula, stored, memory, self.row, starts, self.rule))
        rows = gradient.indices().unbind()
        touched = [tensor[rows] for tensor in written]
        outer = item.weight.shape[: gradient.sparse_dim()]
        width = math.prod(item.weight.shape[gradient.sparse_dim() :]) * (
            2 if item.weight.dtype in _REAL else 1
        )
        strides = torch.tensor([math.prod(outer[axis + 1 :]) for axis in range(len(outer))], device=here)
        starts = item.start() + width * (gradient.indices() * strides[:, None]).sum(dim=0)
        values = gradient.values()
        stored = item.signature(values)[1]
        eager.step(item.formula, stored, [touched[0], values, *touched[1:]], self.row, starts)
        return [
            partial(tensor.index_put_, rows, moved) for tensor, moved in zip(written, touched, strict=True)
        ]


class Plan:
    """How one set of weights with gradients takes a step."""

    state: Any = None  # the optimizer's: as long as it is held here, no other has its `id`

    def __init__(self, items: list[Item], gradients: list[Tensor | None]) -> None:
        self.weights = [item.weight for item in items]
        self.absent = [k for k, gradient in enumerate(gradients) if gradient is None]
        pairs = [(item, gradient) for item in items if (gradient := gradients[item.index]) is not None]
        paths: dict[str, list[tuple[Item, Tensor]]] = defaultdict(list)
        for item, gradient in pairs:
            paths[item.path(gradient)].append((item, gradient))
        self.plain = [_Plain(*batch, gradients) for batch in _by_signature(paths["plain"])]
        self.plain += [_Device(*batch, gradients) for batch in _by_signature(paths["gpu"])]
        self.staged = [_Staged(*batch) for batch in _by_signature(paths["staged"])]
        self.sparse = [item for item, _ in paths["sparse"]]
        self.eager = [item for item, _ in paths["eager"]]
        others = [*paths["staged"], *paths["sparse"], *paths["eager"]]
        self.others = [(item, item.facts(gradient)) for item, gradient in others]

    def fits(self, gradients: list[Tensor | None]) -> bool:
        """Whether each tensor is still moved on the path that was found for it; points at this step's gradients."""
        fitting = (
            all(gradients[k] is None for k in self.absent)
            and all(batch.fits(gradients) for batch in self.plain)
            and all(item.facts(gradients[item.index]) == facts for item, facts in self.others)
        )
        for item in self.sparse if fitting else ():
            check_rows(item.index, item.weight, gradients[item.index])
        return fitting

    def on_one_device(self) -> list[device.DeviceLaunch] | None:
        """The launches, if all of the step is done by kernels on one GPU."""
        launches = [batch.launch for batch in self.plain if isinstance(batch.launch, device.DeviceLaunch)]
        places = {launch.device for launch in launches}
        return launches if len(launches) == len(self.plain) and len(places) == 1 and not self.others else None

    def norm(self, gradients: Sequence[Any], workers: int) -> float:
        """The norm of all gradients together, each read once; NaN or infinite if one of their numbers is."""
        tables = [batch.table for batch in self.plain if isinstance(batch.table, Table)]
        others = [
            gradients[k] for batch in self.plain if not isinstance(batch.table, Table) for k in batch.places
        ]
        others += [gradients[item.index] for item, _ in self.others]
        return norm_of(tables, others, [gradient for gradient in gradients if gradient is not None], workers)

    def step(
        self,
        gradients: Sequence[Any],
        counts: Array,
        rules: Sequence[Rule],
        sparse_rules: Mapping[int, Rule],
        options: Sequence[Terms],
        workers: int,
        counting: Sequence[partial[None]],
    ) -> None:
        """Take one step of every weight, and count it; rules and options are by group.

        What is wrong with a rule, a gradient or the memory for a copy is raised before anything is changed. The first
        to change are the counts, the weights' and those that `counting` moves. Whatever interrupts the step then waits
        until all is moved that kernels move.
        """
        launches = [batch.launch for batch in self.plain]
        for launch in launches:
            launch.prepare(counts, rules, options)
        back: Back = []
        whole: list[_Eager] = []
        memory: list[Tensor] = []  # what the tables of launches point at
        if self.others:
            more, whole, memory = self._prepared(gradients, counts, rules, sparse_rules, options, back)
            launches += more
        # Kernels write behind autograd's back: a backward pass through an older weight must be able to tell.
        torch.autograd.graph.increment_version(self.weights)
        actions = [
            *[launch.counting(counts) for launch in launches],
            *counting,
            *[launch.moving(workers) for launch in launches],
        ]
        if self.others:
            with torch.no_grad():
                threads.together([*actions, *_copying(back)])
                for one in whole:
                    row = one.item.index, slice(len(one.remembered))
                    count = partial(counts.__setitem__, row, np.array(one.remembered))
                    threads.together([*one.writing(), count])
        else:
            threads.together(actions)
        for launch in launches:
            launch.taken(counts)
        memory.clear()  # not before

    @torch.no_grad()
    def _prepared(
        self,
        gradients: Sequence[Any],
        counts: Array,
        rules: Sequence[Rule],
        sparse_rules: Mapping[int, Rule],
        options: Sequence[Terms],
        back: Back,
    ) -> tuple[list[Launch], list[_Eager], list[Tensor]]:
        """What is not plain: its launches, what whole tensors move, and the memory that the launches need.

        What goes through copies is added to `back`.
        """
        launches: list[Launch] = []
        memory: list[Tensor] = []
        for batch in self.staged:
            batch.launch.prepare(counts, rules, options)
            launches.append(batch.launch)
            back += batch.lay(gradients)
        whole = [
            self._whole(item, gradients[item.index], counts, rules[item.group], options)
            for item in self.eager
        ]
        for item in self.sparse:
            gradient = gradients[item.index]
            if item.weight.is_cuda or not all(map(_has_kernel, (item.weight, *item.slots))):
                whole.append(
                    self._whole(item, gradient.coalesce(), counts, sparse_rules[item.group], options)
                )
                continue
            launch, copies, needed = _touched(item, gradient)
            launch.prepare(counts, sparse_rules, options)
            launches.append(launch)
            back += copies
            memory += needed
        return launches, whole, memory

    @staticmethod
    def _whole(item: Item, gradient: Tensor, counts: Array, rule: Rule, options: Sequence[Terms]) -> _Eager:
        values = gradient.values() if gradient.layout == torch.sparse_coo else gradient
        random = drawn(item.signature(values)[1])
        remembered = counts[item.index].tolist()
        scalars = numbers(item.formula, random, rule, remembered, options[item.group])
        return _Eager(item, gradient, rule, *scalars)


def _copying(back: Back) -> list[partial[Any]]:
    return [partial(tensor.copy_, copy) for tensor, copy in back]
