"""Which memory a step walks over: found once, checked at every step, found anew when anything moved.

Most tensors are plain: weight, gradient and state lie alike in memory, and the kernel is pointed at them, on a GPU one
of its own. The others get the right answer by another way, one by one at each step: *staged* tensors lie differently
and go through copies, *sparse* gradients touch some rows only, and *eager* ones are on a device or of a dtype without
a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from schuss.compile import cpu, device, eager
from schuss.compile.formula import Formula
from schuss.compile.launch import Launch, Table, TouchedRows, WholeTensors, advance
from schuss.rules import Rule

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]

_address = Tensor.data_ptr
_contiguous = Tensor.is_contiguous
_dtype = attrgetter("dtype")

# A complex number is two real ones, which the rules move one by one.
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_NAMES = {getattr(torch, name): name for name in cpu.DTYPES}
_KERNEL_DTYPES = frozenset(_NAMES) | frozenset(_REAL)


@dataclass
class Item:
    """One weight with a gradient: its state by slot, its group, and its place among all weights and in the ledger."""

    weight: Tensor
    slots: list[Tensor]
    formula: Formula
    group: int
    member: int

    def way(self, gradient: Tensor) -> str:
        """How this weight is moved: "plain", "gpu", "staged", "sparse" or "eager"."""
        if gradient.layout == torch.sparse_coo:
            return "sparse"
        tensors = (self.weight, gradient, *self.slots)
        if any(not _has_kernel(t) for t in tensors):
            return "eager"
        if device.runs_on(self.weight.device):
            return "gpu" if all(_lies_like(t, self.weight) for t in tensors) else "eager"
        return "plain" if all(map(_contiguous, tensors)) and not any(map(_lazy, tensors)) else "staged"


def _has_kernel(tensor: Tensor) -> bool:
    return (
        (tensor.device.type == "cpu" or device.runs_on(tensor.device))
        and tensor.layout == torch.strided
        and tensor.dtype in _KERNEL_DTYPES
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
    return _NAMES[_REAL.get(tensor.dtype, tensor.dtype)]


Signature = tuple[Formula, tuple[str, ...]]


def _signature(item: Item, gradient: Tensor) -> Signature:
    return item.formula, tuple(map(_name, (item.weight, gradient, *item.slots)))


def _by_signature(pairs: Sequence[tuple[Item, Tensor]]) -> list[tuple[Signature, list[Item]]]:
    """What one kernel can move together; complex weights apart from real ones."""
    batches: dict[Any, tuple[Signature, list[Item]]] = {}
    for item, gradient in pairs:
        signature = _signature(item, gradient)
        key = (signature, gradient.dtype, gradient.device)
        batches.setdefault(key, (signature, []))[1].append(item)
    return list(batches.values())


def _itemsizes(dtypes: Sequence[str]) -> list[int]:
    return [getattr(torch, name).itemsize for name in dtypes]


def _launch(signature: Signature, items: Sequence[Item], table: Table) -> Launch:
    groups, members = [item.group for item in items], [item.member for item in items]
    return Launch(signature[0], cpu.kernel(*signature), table, groups, members)


def _whole(signature: Signature, items: Sequence[Item]) -> WholeTensors:
    return WholeTensors(_itemsizes(signature[1]), [_length(item.weight) for item in items])


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
        columns = [
            self.standing,
            *(list(map(_address, slots)) for slots in zip(*(i.slots for i in items), strict=True)),
        ]
        for column, here in zip((0, *range(2, len(columns) + 1)), columns, strict=True):
            self.table.place(column, np.array(here, dtype=np.int64))
        # A table holds addresses only: keep the memory alive.
        self.memory = [slot.untyped_storage() for item in items for slot in item.slots]
        self.moving: list[int] = []

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
        if not alike or (self.dtypes[0].is_complex and any(map(_lazy, mine))):
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
            model = weight if _dense(weight) and not _lazy(weight) else torch.empty_like(weight).contiguous()

            def laid(tensor: Tensor, written: bool, model: Tensor = model) -> Tensor:
                if tensor is model or (tensor.stride() == model.stride() and not _lazy(tensor)):
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
    signature = _signature(item, values)
    table = TouchedRows(_itemsizes(signature[1]), rows, width)
    table.place(1, values.data_ptr(), packed=True)
    for column, tensor in zip((0, *range(2, len(flat) + 1)), flat, strict=True):
        table.place(column, tensor.data_ptr())
    _launch(signature, [item], table).step(*call)
    for tensor, copy in zip(written, flat, strict=True):
        if tensor is not copy:
            tensor.copy_(copy)


def _step_sparse_eagerly(
    item: Item, gradient: Tensor, ledger: Array, rules: Mapping[int, Rule], scales: Sequence[float], _: int
) -> None:
    """Move the touched rows only, taken out of their tensors and put back."""
    gradient = gradient.coalesce()
    rows = tuple(gradient.indices())
    written = [item.weight, *item.slots]
    touched = [tensor[rows] for tensor in written]
    values, ledger[item.member] = advance(rules[item.group], ledger[item.member].tolist())
    eager.step(item.formula, touched[0], gradient.values(), touched[1:], scales[item.group], values)
    for tensor, moved in zip(written, touched, strict=True):
        tensor[rows] = moved


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

    def step(
        self,
        gradients: Sequence[Any],
        ledger: Array,
        rules: Sequence[Rule],
        sparse_rules: Mapping[int, Rule],
        scales: Sequence[float],
        workers: int,
    ) -> None:
        """Take one step of every weight; rules and gradient scales are by group."""
        # Kernels write behind autograd's back: a backward pass through an older weight must be able to tell.
        torch.autograd.graph.increment_version(self.weights)
        for batch in self.plain:
            batch.launch.step(ledger, rules, scales, workers)
        if self.other_ways:
            with torch.no_grad():
                for batch in self.staged:
                    batch.step(gradients, ledger, rules, scales, workers)
                for item in self.sparse:
                    on_cpu = item.weight.device.type == "cpu"
                    step_sparse = _step_sparse if on_cpu else _step_sparse_eagerly
                    step_sparse(item, gradients[item.member], ledger, sparse_rules, scales, workers)
                for item in self.eager:
                    values, ledger[item.member] = advance(rules[item.group], ledger[item.member].tolist())
                    gradient = gradients[item.member]
                    eager.step(item.formula, item.weight, gradient, item.slots, scales[item.group], values)
