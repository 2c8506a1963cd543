"""Which memory a step walks over: found once, checked at every step, found anew when anything moved.

Most tensors are plain: weight, gradient and state lie alike in memory, and the kernel is pointed at them, on a GPU one
of its own. The others get the right answer by another way, one by one at each step: *staged* tensors lie differently
and go through copies, *sparse* gradients touch some rows only, and *eager* ones are on a device or of a dtype without
a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from schuss.compile import cpu, device, eager
from schuss.compile.formula import Formula
from schuss.compile.front import dtype_name
from schuss.compile.launch import TENSOR_BITS, Launch, Table, Terms, TouchedRows, WholeTensors, numbers
from schuss.compile.storage import PLAIN, STORAGES, Column, columns, drawn
from schuss.rules import Rule
from schuss.torch.norm import norm_of

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]

_address = Tensor.data_ptr
_contiguous = Tensor.is_contiguous
_dtype = attrgetter("dtype")

# A complex number is two real ones, which the rules move one by one.
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_NAMES = {getattr(torch, name): name for name in PLAIN}
_KERNEL_DTYPES = frozenset(_NAMES) | frozenset(_REAL)


@dataclass
class Item:
    """One weight with a gradient: its state, its group, and its place among all weights and in the ledger.

    `kept` says how the weight and each slot are kept; `slots` are the arrays of the slots, then those beside the weight
    and the slots.
    """

    weight: Tensor
    slots: list[Tensor]
    kept: tuple[str, ...]
    formula: Formula
    group: int
    member: int

    def way(self, gradient: Tensor) -> str:
        """How this weight is moved: "plain", "gpu", "staged", "sparse" or "eager"."""
        if gradient.layout == torch.sparse_coo:
            return "sparse"
        tensors = (self.weight, gradient, *self.slots)
        if not all(one in STORAGES for one in self.kept) or not all(
            map(_has_kernel, tensors, (_KERNEL_DTYPES, _KERNEL_DTYPES, *[()] * len(self.slots)))
        ):
            return "eager"
        straight = all(map(_contiguous, tensors)) and not any(map(_lazy, tensors))
        if device.runs_on(self.weight.device):
            alike = not self.in_blocks and all(_lies_like(t, self.weight) for t in tensors)
            return "gpu" if straight or alike else "eager"
        return "plain" if straight else "staged"

    @property
    def in_blocks(self) -> bool:
        """Whether a slot is kept in blocks, which are counted row by row, however the weight lies in memory."""
        return "int8" in self.kept

    def signature(self, gradient: Tensor) -> Signature:
        """What has a kernel in common."""
        return self.formula, (self.kept[0], _name(gradient), *self.kept[1:])

    def start(self) -> int:
        """The place of the weight's first element among all."""
        return self.member << TENSOR_BITS


def _has_kernel(tensor: Tensor, dtypes: Collection[torch.dtype]) -> bool:
    return (
        (tensor.device.type == "cpu" or device.runs_on(tensor.device))
        and tensor.layout == torch.strided
        and (not dtypes or tensor.dtype in dtypes)
        and type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
    )


def _lazy(tensor: Tensor) -> bool:
    """A conjugate or negative that is noted, not yet computed: its memory holds something else."""
    return tensor.is_conj() or tensor.is_neg()


def _lies_like(tensor: Tensor, other: Tensor) -> bool:
    """Whether both fill memory in the same order, on the same device."""
    alike = (_contiguous(tensor) and _contiguous(other)) or (
        tensor.stride() == other.stride() and _dense(other)
    )
    return alike and tensor.device == other.device and not _lazy(tensor)


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
    groups, members = [item.group for item in items], [item.member for item in items]
    return Launch(signature[0], cpu.kernel(*signature), table, groups, members)


def _whole(signature: Signature, items: Sequence[Item]) -> WholeTensors:
    return WholeTensors(_columns(signature), [_length(item.weight) for item in items])


class _Plain:
    """Tensors of one signature that lie alike in memory: one table, checked by address.

    Replaced state is noted where it is replaced (`State`); that a slot's own memory moved under it is not looked for.
    """

    def __init__(self, signature: Signature, items: list[Item]) -> None:
        self.places = [item.member for item in items]
        self.whole = self.places == list(range(len(items)))
        self.weights = [item.weight for item in items]
        weight = self.weights[0]
        self.dtypes = [weight.dtype if weight.is_complex() else getattr(torch, signature[1][1])] * len(items)
        self.table, self.launch = self._made(signature, items)
        self.standing = list(map(_address, self.weights))
        placed = [
            self.standing,
            *(list(map(_address, slots)) for slots in zip(*(i.slots for i in items), strict=True)),
        ]
        for column, here in zip((0, *range(2, len(placed) + 1)), placed, strict=True):
            self.table.place(column, np.array(here, dtype=np.int64))
        # A table holds addresses only: keep the memory alive.
        self.memory = [slot.untyped_storage() for item in items for slot in item.slots]
        self.moving: list[int] = []
        # A gradient can be noted as conjugate or negative, and contiguous, where it is complex or one number (an
        # imaginary part).
        self.doubted = [
            k
            for k, weight in zip(self.places, self.weights, strict=True)
            if weight.is_complex() or weight.numel() == 1
        ]

    def _made(self, signature: Signature, items: list[Item]) -> tuple[Any, Launch]:
        table = _whole(signature, items)
        return table, _launch(signature, items, table)

    def _alike(self, gradients: Sequence[Tensor]) -> bool:
        return all(map(_contiguous, gradients))

    def fits(self, gradients: Sequence[Any]) -> bool:
        """Point at this step's gradients; False if anything no longer lies as it did."""
        mine = (
            gradients
            if self.whole and len(gradients) == len(self.places)
            else [gradients[k] for k in self.places]
        )
        if list(map(_address, self.weights)) != self.standing:
            return False
        try:
            moving = list(map(_address, mine))
            alike = self._alike(mine) and list(map(_dtype, mine)) == self.dtypes
        except (RuntimeError, TypeError):  # a sparse gradient has no address, and None is no tensor
            return False
        if not alike or any(_lazy(gradients[k]) for k in self.doubted):
            return False
        if moving != self.moving:
            self.table.place(1, np.array(moving, dtype=np.int64))
            self.moving = moving
        return True


class _Device(_Plain):
    """Tensors of one signature on one GPU."""

    def _made(self, signature: Signature, items: list[Item]) -> tuple[Any, Launch]:
        launch = device.DeviceLaunch(
            *signature,
            [_length(item.weight) for item in items],
            [item.group for item in items],
            [item.member for item in items],
            self.weights[0].device,
        )
        self.contiguous = all(map(_contiguous, self.weights))
        return launch.tensors, launch

    def _alike(self, gradients: Sequence[Tensor]) -> bool:
        if self.contiguous and all(map(_contiguous, gradients)):
            return True
        return all(map(_lies_like, gradients, self.weights))


class _Staged:
    """Tensors of one signature that do not lie alike: what differs goes through a copy, in and out."""

    def __init__(self, signature: Signature, items: list[Item]) -> None:
        self.items = items
        self.table = _whole(signature, items)
        self.launch = _launch(signature, items, self.table)

    def step(self, gradients: Sequence[Any], *call: Any) -> None:
        alike: list[list[Tensor]] = []
        back: list[tuple[Tensor, Tensor]] = []
        for item in self.items:
            weight = item.weight
            straight = _contiguous(weight) or (_dense(weight) and not item.in_blocks)
            model = (
                weight if straight and not _lazy(weight) else torch.empty(weight.shape, dtype=weight.dtype)
            )

            def laid(tensor: Tensor, written: bool, model: Tensor = model) -> Tensor:
                if tensor is model or (tensor.stride() == model.stride() and not _lazy(tensor)):
                    return tensor
                if tensor.shape != model.shape:  # the scales of blocks
                    return tensor
                copy = torch.empty_strided(model.shape, model.stride(), dtype=tensor.dtype).copy_(tensor)
                if written:
                    back.append((tensor, copy))
                return copy

            alike.append(
                [
                    laid(weight, True),
                    laid(gradients[item.member], False),
                    *(laid(slot, True) for slot in item.slots),
                ]
            )
        addresses = np.array([list(map(_address, tensors)) for tensors in alike], dtype=np.int64)
        for column, here in enumerate(addresses.T):
            self.table.place(column, here)
        self.launch.step(*call)
        for tensor, copy in back:
            tensor.copy_(copy)


def _row_numbers(gradient: Tensor, outer: Sequence[int]) -> Array:
    return np.asarray(np.ravel_multi_index(tuple(gradient._indices().numpy()), tuple(outer)))


def _step_sparse(item: Item, gradient: Tensor, *call: Any) -> None:
    """Move the touched rows only: a row of the table is a row of the weight."""
    outer, inner = item.weight.shape[: gradient.sparse_dim()], item.weight.shape[gradient.sparse_dim() :]
    rows = _row_numbers(gradient, outer)
    if not gradient.is_coalesced() and (np.diff(np.sort(rows)) == 0).any():
        gradient = gradient.coalesce()
        rows = _row_numbers(gradient, outer)
    values = gradient._values().resolve_conj().resolve_neg().contiguous()
    width = math.prod(inner) * (2 if item.weight.dtype in _REAL else 1)
    written = [item.weight, *item.slots]
    flat = [
        t if _contiguous(t) and not _lazy(t) else t.clone(memory_format=torch.contiguous_format)
        for t in written
    ]
    signature = item.signature(values)
    table = TouchedRows(_columns(signature), rows, width)
    table.place(1, values.data_ptr(), packed=True)
    for column, tensor in zip((0, *range(2, len(flat) + 1)), flat, strict=True):
        table.place(column, tensor.data_ptr())
    _launch(signature, [item], table).step(*call)
    for tensor, copy in zip(written, flat, strict=True):
        if tensor is not copy:
            tensor.copy_(copy)


def _step_sparse_eagerly(
    item: Item, gradient: Tensor, ledger: Array, rules: Mapping[int, Rule], terms: Sequence[Terms], _: int
) -> None:
    """Move the touched rows only, taken out of their tensors and put back."""
    gradient = gradient.coalesce()
    rows = gradient.indices().unbind()
    written = [item.weight, *item.slots]
    touched = [tensor[rows] for tensor in written]
    outer = item.weight.shape[: gradient.sparse_dim()]
    width = math.prod(item.weight.shape[gradient.sparse_dim() :]) * (2 if item.weight.dtype in _REAL else 1)
    strides = torch.tensor([math.prod(outer[axis + 1 :]) for axis in range(len(outer))])
    starts = item.start() + width * (gradient.indices() * strides[:, None].to(item.weight.device)).sum(dim=0)
    _step_eagerly(item, [touched[0], gradient.values(), *touched[1:]], starts, ledger, rules, terms)
    for tensor, moved in zip(written, touched, strict=True):
        tensor[rows] = moved


def _step_eagerly(
    item: Item,
    memory: Sequence[Tensor],
    starts: Tensor,
    ledger: Array,
    rules: Sequence[Rule] | Mapping[int, Rule],
    terms: Sequence[Terms],
) -> None:
    """Move a weight by whole tensors; `memory` is a kernel's columns."""
    kept = item.signature(memory[1])[1]
    remembered = ledger[item.member].tolist()
    row, ledger[item.member] = numbers(
        item.formula, drawn(kept), rules[item.group], remembered, terms[item.group]
    )
    eager.step(item.formula, kept, memory, row, starts)


class Plan:
    """How one set of weights with gradients takes a step."""

    def __init__(self, items: list[Item], gradients: Sequence[Tensor | None]) -> None:
        self.weights = [item.weight for item in items]
        self.absent = [k for k, gradient in enumerate(gradients) if gradient is None]
        pairs = [(item, gradient) for item in items if (gradient := gradients[item.member]) is not None]
        ways: dict[str, list[tuple[Item, Tensor]]] = {
            "plain": [],
            "gpu": [],
            "staged": [],
            "sparse": [],
            "eager": [],
        }
        for item, gradient in pairs:
            ways[item.way(gradient)].append((item, gradient))
        self.plain = [_Plain(*batch) for batch in _by_signature(ways["plain"])]
        self.plain += [_Device(*batch) for batch in _by_signature(ways["gpu"])]
        self.staged = [_Staged(*batch) for batch in _by_signature(ways["staged"])]
        self.sparse = [item for item, _ in ways["sparse"]]
        self.eager = [item for item, _ in ways["eager"]]
        self.other_ways = [
            (item, way) for way, found in ways.items() if way not in ("plain", "gpu") for item, _ in found
        ]
        for batch in self.plain:
            batch.fits(gradients)

    def fits(self, gradients: Sequence[Tensor | None]) -> bool:
        """Whether each tensor is still moved the way that was found for it; points at this step's gradients."""
        return (
            all(gradients[k] is None for k in self.absent)
            and all(batch.fits(gradients) for batch in self.plain)
            and all(
                (gradient := gradients[item.member]) is not None and item.way(gradient) == way
                for item, way in self.other_ways
            )
        )

    def on_one_device(self) -> list[device.DeviceLaunch] | None:
        """The launches, if all of the step is done by kernels on one GPU."""
        launches = [batch.launch for batch in self.plain if isinstance(batch.launch, device.DeviceLaunch)]
        places = {launch.device for launch in launches}
        return (
            launches
            if len(launches) == len(self.plain) and len(places) == 1 and not self.other_ways
            else None
        )

    def norm(self, gradients: Sequence[Any], workers: int) -> float:
        """The norm of all gradients together, each read once; NaN or infinite if one of their numbers is."""
        tables = [batch.table for batch in self.plain if isinstance(batch.table, Table)]
        others = [
            gradients[k] for batch in self.plain if not isinstance(batch.table, Table) for k in batch.places
        ]
        others += [gradients[item.member] for item, _ in self.other_ways]
        return norm_of(tables, others, [gradient for gradient in gradients if gradient is not None], workers)

    def step(
        self,
        gradients: Sequence[Any],
        ledger: Array,
        rules: Sequence[Rule],
        sparse_rules: Mapping[int, Rule],
        terms: Sequence[Terms],
        workers: int,
    ) -> None:
        """Take one step of every weight; rules and terms are by group."""
        # Kernels write behind autograd's back: a backward pass through an older weight must be able to tell.
        torch.autograd.graph.increment_version(self.weights)
        for batch in self.plain:
            batch.launch.step(ledger, rules, terms, workers)
        if self.other_ways:
            with torch.no_grad():
                for batch in self.staged:
                    batch.step(gradients, ledger, rules, terms, workers)
                for item in self.sparse:
                    on_cpu = item.weight.device.type == "cpu"
                    step_sparse = _step_sparse if on_cpu else _step_sparse_eagerly
                    step_sparse(item, gradients[item.member], ledger, sparse_rules, terms, workers)
                for item in self.eager:
                    memory = [item.weight, gradients[item.member], *item.slots]
                    start = torch.tensor([item.start()], device=item.weight.device)
                    _step_eagerly(item, memory, start, ledger, rules, terms)
