"""How a weight's state lies in tensors: new, read from a checkpoint, and as a launch takes it.

Each slot is a tensor under its name. What is kept beside it (`storage`) stands under a name of its own: the scales of
`exp_avg` in blocks under `exp_avg_scale`, what rounding took from the weight under `rest`.

In a checkpoint, codes stand under `exp_avg_codes`: torch.optim would take them for numbers, and what it misses it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch

from schuss.compile import eager
from schuss.compile.checkpoint import REST, Part, is_count, scale_of
from schuss.compile.formula import AVERAGE
from schuss.compile.front import dtype_name, slot_dtype, slot_storage
from schuss.compile.storage import BLOCK, PLAIN, STORAGES
from schuss.torch.layout import apart, held, in_memory

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


def create(name: str, weight: Tensor, dtype: str, value: float) -> dict[str, Tensor]:
    """A slot before the first step, every number of it `value`, laid out as its weight (blocks: row by row)."""
    if dtype == "int8":
        codes, scales = eager.to_levels(
            torch.full(weight.shape, value, dtype=torch.float32, device=weight.device)
        )
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


def begin(
    entry: MutableMapping[str, Any],
    weight: Tensor,
    slots: Mapping[str, float],
    averaged: bool,
    state_dtype: Any,
    whole: bool,
) -> bool:
    """Give a weight the state that it has not; return whether it had none.

    `slots` are the names of its state with their first values. State in blocks needs the `whole` of a gradient: where
    rows come alone, it is kept in float32.
    """
    remembered = [*slots, *([AVERAGE] if averaged else [])]
    new = bool(remembered) and all(entry.get(name) is None for name in remembered)
    for name, first in slots.items():
        if entry.get(name) is None:
            entry.update(create(name, weight, slot_dtype_of(weight, state_dtype, whole), first))
        elif entry[name].dtype == torch.int8 and not whole:
            convert(entry, name, "float32")
    if not averaged:  # of no meaning once the weight has moved without it
        entry.pop(AVERAGE, None)
    elif entry.get(AVERAGE) is None:
        entry.update(create(AVERAGE, weight, slot_dtype_of(weight, None), 0.0))
        entry[AVERAGE].copy_(weight.detach())
    return new


def _beside_dtype(stored: str) -> str:
    one = STORAGES[stored].beside
    assert one is not None
    return one.dtype


# What has numbers to move: by a kernel or by whole tensors.
_NUMBERS = frozenset(getattr(torch, name) for name in PLAIN)


def _has_numbers(tensor: Tensor) -> bool:
    return (tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype) in _NUMBERS


def _short(tensor: Tensor) -> str:
    return f"is {dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)} on {tensor.device}"


def check(
    key: int,
    weight: Tensor,
    gradient: Tensor,
    entry: Mapping[str, Any],
    names: Sequence[str],
    parts: Mapping[str, Part],
    together: Sequence[str],
) -> None:
    """Refuse a weight, a gradient or state that a step could not walk over, whoever has made it so.

    `key` is the weight's place among all, `names` are those of its slots, `parts` says what each entry is, and
    `together` names those that are there all or not at all. Nothing is changed here, so a step that is refused has
    changed nothing.
    """
    where = f"weight {key}, of shape {tuple(weight.shape)}"
    _check_weight(weight, partial(_refuse, f"The {where}"))
    refuse = partial(_refuse, f"The gradient of {where}")
    if gradient.layout not in (torch.strided, torch.sparse_coo):
        raise refuse(f"is {gradient.layout}", "a dense or a COO tensor", "Try `.to_dense()`.")
    _check_like(weight, gradient, refuse, "Was it replaced or cast through `.data`?")
    if gradient.layout == torch.sparse_coo:
        check_rows(key, weight, gradient)
    _check_together(entry, parts, together, lambda name: partial(_refuse, f"The state {name!r} of {where}"))
    for name in names:
        if (slot := entry.get(name)) is not None:
            scales = entry.get(scale_of(name))
            refuse, refuse_scales = (
                partial(_refuse, f"The state {one!r} of {where}") for one in (name, scale_of(name))
            )
            _check_slot(weight, slot, scales, refuse, refuse_scales)
    rest = entry.get(REST)
    refuse = partial(_refuse, f"The state {REST!r} of {where}")
    if isinstance(rest, Tensor) and rest.shape == weight.shape and rest.layout == torch.strided:
        _check_held(rest, refuse)
        _check_apart(rest, refuse)
    elif rest is not None:
        has = _short(rest) if isinstance(rest, Tensor) else f"is of type {type(rest).__name__}"
        raise refuse(has, f"a dense tensor of shape {tuple(weight.shape)}", _GONE)


Refuse = Callable[[str, str, str], ValueError]
"""What a tensor has, what it needs, what to try."""


def _refuse(what: str, has: str, needs: str, advice: str) -> ValueError:
    return ValueError(f"{what}, {has}; it needs {needs}. {advice}")


def _check_weight(weight: Tensor, refuse: Refuse) -> None:
    if weight.layout != torch.strided or not _has_numbers(weight):
        kind = f"is {dtype_name(weight.dtype)}, {weight.layout}"
        raise refuse(kind, _numbers_of("real"), "Cast it, or freeze it.")
    _check_held(weight, refuse)
    _check_apart(weight, refuse)


def _check_apart(tensor: Tensor, refuse: Refuse) -> None:
    """Refuse to write to numbers that share memory."""
    if not apart(tensor):
        shared = "has numbers that share memory"
        raise refuse(shared, "memory of its own for each", "Try `.data = .data.clone()`.")


def _check_like(weight: Tensor, tensor: Tensor, refuse: Refuse, advice: str, integers: bool = False) -> None:
    """Refuse a tensor that does not lie beside the weight, number by number."""
    fits = (tensor.shape, tensor.device) == (weight.shape, weight.device)
    kind = _has_numbers(tensor) or (integers and tensor.dtype == torch.int8)
    if not fits or not kind or tensor.is_complex() != weight.is_complex():
        numbers = _numbers_of("complex" if weight.is_complex() else "real")
        raise refuse(_short(tensor), f"shape {tuple(weight.shape)} on {weight.device} and {numbers}", advice)
    _check_held(tensor, refuse)


def _check_slot(weight: Tensor, slot: Any, scales: Any, refuse: Refuse, refuse_scales: Refuse) -> None:
    if not isinstance(slot, Tensor) or slot.layout != torch.strided:
        has = f"is {slot.layout}" if isinstance(slot, Tensor) else f"is of type {type(slot).__name__}"
        raise refuse(has, "a dense tensor", _GONE)
    _check_like(weight, slot, refuse, _GONE, integers=True)
    _check_apart(slot, refuse)
    if slot.dtype == torch.int8:
        _check_scales(slot, scales, refuse_scales)
    elif scales is not None:
        has = f"is {dtype_name(slot.dtype)} with scales"
        raise refuse(has, "int8 codes with scales", "Were they cast?")


_GONE = "Was it replaced, or the weight's `.data`? `optimizer.state.clear()` starts the state anew."


def _check_together(
    entry: Mapping[str, Any],
    parts: Mapping[str, Part],
    together: Sequence[str],
    refuse: Callable[[str], Refuse],
) -> None:
    """Refuse a count or scalar that is none, and state that is there in part: the rest would start at another step."""
    for name in together:
        one, value = parts[name], entry.get(name)
        if value is None or one.kind not in ("count", "number"):
            continue
        number = _number(value)
        fits = is_count(number) if one.kind == "count" else one.low <= number <= one.high
        if not (fits and math.isfinite(number)):
            needs = "a whole number ≥ 0" if one.kind == "count" else one.domain
            raise refuse(name)(f"is {value!r}", needs, _GONE)
    there = [name for name in together if entry.get(name) is not None]
    if there == ["step"] and not _number(entry["step"]):
        return  # a count that waits for the first step
    for name in together if there else ():
        if name not in there:
            beside = ", ".join(map(repr, there))
            raise refuse(name)("is missing", f"its own numbers, like {beside}", _GONE)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _numbers_of(field: str) -> str:
    names = ", ".join(PLAIN) if field == "real" else "complex64, complex128"
    return f"{field} numbers, one of {names}"


def _check_held(tensor: Tensor, refuse: Refuse) -> None:
    if in_memory(tensor) and not held(tensor):
        has = "has memory for fewer numbers than its shape"
        raise refuse(has, "memory for all of them", "Was its storage freed or resized?")


def _check_scales(codes: Tensor, scales: Any, refuse: Refuse) -> None:
    blocks = -(-codes.numel() // BLOCK)
    needs = f"{blocks} scales, contiguous float32 on {codes.device}"
    if not isinstance(scales, Tensor):
        has = "is missing" if scales is None else f"is of type {type(scales).__name__}"
        raise refuse(has, needs, _GONE)
    fits = (scales.layout, scales.dtype, scales.device) == (torch.strided, torch.float32, codes.device)
    if not fits or scales.numel() != blocks or not scales.is_contiguous():
        raise refuse(_short(scales), needs, _GONE)
    _check_held(scales, refuse)


def check_rows(key: int, weight: Tensor, gradient: Any) -> None:
    """Refuse a sparse gradient with a row that the weight does not have: PyTorch looks only where it is asked to."""
    indices, values = gradient._indices(), gradient._values()
    of = f"The sparse gradient of weight {key}, of shape {tuple(weight.shape)},"
    expected = (indices.shape[1], *weight.shape[gradient.sparse_dim() :])
    if tuple(values.shape) != expected or not held(values) or not held(indices):
        raise ValueError(
            f"{of} has values of shape {tuple(values.shape)} for {indices.shape[1]} indices; it needs {expected}, all "
            "of it in memory. Try torch.sparse_coo_tensor(..., check_invariants=True) where it is made."
        )
    if not indices.shape[1]:
        return
    ends = zip(indices.amin(dim=1).tolist(), indices.amax(dim=1).tolist(), weight.shape, strict=False)
    for axis, (least, most, size) in enumerate(ends):
        for index in (least, most):
            if not 0 <= index < size:
                raise ValueError(
                    f"{of} has the index {index} in dimension {axis}; it needs one in [0, {size}). Try "
                    "torch.sparse_coo_tensor(..., check_invariants=True) where it is made."
                )
