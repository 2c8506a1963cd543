"""How a weight's state lies in tensors: new, read from a checkpoint, and as a launch takes it.

Each slot is a tensor under its name. What is kept beside it (`storage`) stands under a name of its own: the scales of
`exp_avg` in blocks under `exp_avg_scale`, what rounding took from the weight under `rest`.

In a checkpoint, codes stand under `exp_avg_codes`: torch.optim would take them for numbers, and what it misses it says.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch

from schuss.compile import eager
from schuss.compile.checkpoint import REST, scale_of
from schuss.compile.front import dtype_name, slot_dtype, slot_storage
from schuss.compile.storage import BLOCK, STORAGES

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


def beside(stored: str) -> bool:
    """Whether something is kept beside a weight that is kept so."""
    return stored in STORAGES and STORAGES[stored].beside is not None


def slot_dtype_of(weight: Tensor, state_dtype: Any, whole: bool = True) -> str:
    """The dtype of a new slot. Complex weights have complex state; blocks need the `whole` of a gradient."""
    if weight.is_complex():
        return name_of(weight)
    chosen = slot_dtype(name_of(weight), state_dtype, weight.numel())
    return "float32" if chosen == "int8" and not whole else chosen


def new(name: str, weight: Tensor, dtype: str, value: float) -> dict[str, Tensor]:
    """A slot before the first step, every number of it `value`, laid out as its weight (blocks: row by row)."""
    if dtype == "int8":
        codes, scales = eager.to_levels(torch.full(weight.shape, value, device=weight.device))
        return {name: codes, scale_of(name): scales}
    kind = weight.dtype if weight.is_complex() else getattr(torch, dtype)
    slot = torch.zeros_like(weight, dtype=kind, memory_format=torch.preserve_format, requires_grad=False)
    if value:
        (torch.view_as_real(slot) if slot.is_complex() else slot).fill_(value)
    return {name: slot}


def convert(entry: MutableMapping[str, Any], name: str, dtype: str, block: int = BLOCK) -> None:
    """Keep a slot in another dtype, rounded to nearest; `block` is how many of its numbers have shared a scale."""
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
    """How the weight and its slots are kept, and the tensors of the slots and of what is beside them, in that order."""
    slots: list[Tensor] = [entry[name] for name in names]
    besides: list[Tensor] = []
    if beside(stored):
        wanted = getattr(torch, _beside_dtype(stored))
        rest = entry.get(REST)
        if rest is None or (rest.dtype, rest.shape, rest.device) != (wanted, weight.shape, weight.device):
            entry[REST] = torch.zeros_like(weight, dtype=wanted, requires_grad=False)
        besides.append(entry[REST])
    else:  # of no meaning once the weight has moved without it
        entry.pop(REST, None)
    besides += [
        entry[scale_of(name)] for name, slot in zip(names, slots, strict=True) if slot.dtype == torch.int8
    ]
    return (stored, *(slot_storage(name_of(slot)) for slot in slots)), [*slots, *besides]


def _beside_dtype(stored: str) -> str:
    one = STORAGES[stored].beside
    assert one is not None
    return one.dtype
