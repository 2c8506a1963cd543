"""How a weight's state is stored in tensors: new, read from a checkpoint, and as a launch takes it.

Each slot is a tensor under its name. The scales of an int8 slot `exp_avg` stand under `exp_avg_scale`, the compensation
term of the weight under `rest`.

In a checkpoint, codes stand under `exp_avg_codes`: torch.optim would take them for numbers, and what it misses it says.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from schuss.compile import eager
from schuss.compile.formula import AVERAGE
from schuss.compile.matrices import slot_shape
from schuss.compile.storage import BLOCK, STORAGES
from schuss.core.checkpoint import REST, scale_of
from schuss.core.storage import WIDE, dtype_name, slot_dtype, slot_storage

Tensor = torch.Tensor

_CODES = "_codes"


def saved_name(name: str, value: Any) -> str:
    """The name of a state's entry in a checkpoint."""
    return f"{name}{_CODES}" if isinstance(value, Tensor) and value.dtype == torch.int8 else name


def own_name(name: str) -> str:
    """The name of a checkpoint's entry in the state."""
    return name.removesuffix(_CODES)


def name_of(tensor: Tensor) -> str:
    """The dtype of a tensor's numbers, two for each complex one."""
    return dtype_name(tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype)


def rest_dtype(stored: str) -> str | None:
    """The dtype of the compensation term of weights with this storage; None if they have none."""
    buffer = STORAGES[stored].beside if stored in STORAGES else None
    return buffer.dtype if buffer else None


def new_dtype(weight: Tensor, state_dtype: Any, whole: bool = True, precise: bool = False) -> str:
    """The dtype of a new slot; int8 needs the `whole` of a gradient, and a slot that need not stay `precise`."""
    return slot_dtype(dtype_name(weight.dtype), state_dtype, weight.numel(), whole, precise)


def create(name: str, weight: Tensor, dtype: str, value: float, shape: str = "") -> dict[str, Tensor]:
    """A slot before the first step, every number of it `value`, laid out as its weight (blocks: row by row).

    With a `shape`, one number for each "row" or "column".
    """
    if shape and 0 in weight.shape:
        weight = weight.new_empty(slot_shape(weight.shape, shape))
    elif shape:  # of a DTensor a part, which lies on the processes that it has to
        one = weight.detach().narrow(-1 if shape == "row" else -2, 0, 1)
        weight = one.clone(memory_format=torch.contiguous_format)
    if dtype == "int8":
        codes, scales = eager.to_levels(
            torch.full(weight.shape, value, dtype=torch.float32, device=weight.device)
        )
        return {name: codes, scale_of(name): scales}
    slot = torch.zeros_like(
        weight, dtype=getattr(torch, dtype), memory_format=torch.preserve_format, requires_grad=False
    )
    if value:
        (torch.view_as_real(slot) if slot.is_complex() else slot).fill_(value)
    return {name: slot}


def convert(entry: MutableMapping[str, Any], name: str, dtype: str, block: int = BLOCK) -> None:
    """Store a slot in another dtype, rounded to nearest; `block` is how many of its numbers have shared a scale."""
    value: Tensor = entry[name]
    if value.is_complex() or (dtype_name(value.dtype) == dtype and block == BLOCK):
        return
    if value.dtype == torch.int8:
        value = eager.from_levels(value, entry.pop(scale_of(name)), block)
    if dtype == "int8":
        entry[name], entry[scale_of(name)] = eager.to_levels(value.float())
    else:
        entry[name] = value.to(getattr(torch, dtype))


def arrays(
    weight: Tensor, stored: str, entry: MutableMapping[str, Any], names: Sequence[str]
) -> tuple[tuple[str, ...], list[Tensor]]:
    """The storage of the weight and its slots, and the tensors of the slots, then of their auxiliary buffers."""
    slots: list[Tensor] = [entry[name] for name in names]
    buffers: list[Tensor] = []
    if dtype := rest_dtype(stored):
        wanted, rest = getattr(torch, dtype), entry.get(REST)
        if rest is None or (rest.dtype, rest.shape, rest.device) != (wanted, weight.shape, weight.device):
            entry[REST] = torch.zeros_like(weight, dtype=wanted, requires_grad=False)
        buffers.append(entry[REST])
    else:  # of no meaning once the weight has moved without it
        entry.pop(REST, None)
    buffers += [entry[scale_of(name)] for name in names if entry[name].dtype == torch.int8]
    return (stored, *(slot_storage(name_of(slot)) for slot in slots)), [*slots, *buffers]


def begin(
    entry: MutableMapping[str, Any],
    weight: Tensor,
    slots: Mapping[str, float],
    averaged: bool,
    state_dtype: Any,
    whole: bool,
    precise: Container[str] = (),
    shapes: Mapping[str, str] | None = None,
) -> bool:
    """Give a weight the state that it has not; return whether its rule had none.

    `slots` are the names of its state with their first values; those that are `precise` have 32 bits at least, and
    `shapes` have a number for each row or column. State in int8 needs the `whole` of a gradient: where rows come alone,
    it is in float32.
    """
    new = bool(slots) and all(entry.get(name) is None for name in (*slots, AVERAGE))
    shapes = shapes or {}
    for name, first in slots.items():
        if entry.get(name) is None:
            dtype = new_dtype(weight, state_dtype, whole, name in precise)
            entry.update(create(name, weight, dtype, first, shapes.get(name, "")))
        elif (name in shapes and name_of(entry[name]) not in WIDE) or (
            entry[name].dtype == torch.int8 and not whole
        ):
            convert(entry, name, "float32")
    if not averaged:  # of no meaning once the weight has moved without it
        entry.pop(AVERAGE, None)
    elif entry.get(AVERAGE) is None:
        entry.update(create(AVERAGE, weight, new_dtype(weight, None), 0.0))
        entry[AVERAGE].copy_(weight.detach())
    return new
