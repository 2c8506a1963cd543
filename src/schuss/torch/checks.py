"""What a step needs of weights, gradients and state, whoever has made them so: checked when a plan is made.

Nothing is changed here, so a step that is refused has changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from schuss.compile.matrices import slot_shape
from schuss.compile.storage import BLOCK, PLAIN
from schuss.core.checkpoint import REST, Part, is_count, scale_of
from schuss.core.storage import apart, dtype_name
from schuss.torch.layout import held, in_memory

Tensor = torch.Tensor

# What has numbers to move: by a kernel or by whole tensors.
_NUMBERS = frozenset(getattr(torch, name) for name in PLAIN)
_GONE = "Was it replaced, or the weight's `.data`? `optimizer.state.clear()` starts the state anew."


def check(
    key: int,
    weight: Tensor,
    gradient: Tensor,
    entry: Mapping[str, Any],
    names: Sequence[str],
    parts: Mapping[str, Part],
    together: Sequence[str],
) -> None:
    """Refuse a weight, a gradient or state that a step could not run over.

    `key` is the weight's index among all, `names` are those of its slots, `parts` says what each entry is, and
    `together` names those that are there all or not at all.
    """
    where = f"weight {key}, of shape {tuple(weight.shape)}"
    if weight.layout != torch.strided or not _has_numbers(weight):
        kind = f"is {dtype_name(weight.dtype)}, {weight.layout}"
        raise _refused(f"The {where}", kind, _numbers_of("real"), "Cast it, or freeze it.")
    _check_written(f"The {where}", weight)
    what = f"The gradient of {where}"
    if gradient.layout not in (torch.strided, torch.sparse_coo):
        raise _refused(what, f"is {gradient.layout}", "a dense or a COO tensor", "Try `.to_dense()`.")
    _check_like(what, weight, gradient, "Was it replaced or cast through `.data`?")
    if gradient.layout == torch.sparse_coo:
        check_rows(key, weight, gradient)
    _check_together(where, entry, parts, together)
    for name in names:
        if (slot := entry.get(name)) is not None:
            shape = slot_shape(weight.shape, parts[name].shape)
            _check_slot(where, name, weight, slot, entry.get(scale_of(name)), shape)
    what, rest = _state(REST, where), entry.get(REST)
    if isinstance(rest, Tensor) and rest.shape == weight.shape and rest.layout == torch.strided:
        _check_written(what, rest)
    elif rest is not None:
        has = _shown(rest) if isinstance(rest, Tensor) else f"is of type {type(rest).__name__}"
        raise _refused(what, has, f"a dense tensor of shape {tuple(weight.shape)}")


def check_real(key: int, weight: Tensor, rule: str) -> None:
    """Refuse a complex weight to a rule whose state has rows and columns: pairs of real numbers would be its rows."""
    if weight.is_complex():
        raise _refused(
            f"The weight {key}, of shape {tuple(weight.shape)}",
            f"is {dtype_name(weight.dtype)}",
            f"real numbers: {rule} takes means over rows and columns",
            "Give it torch.view_as_real(weight), or a group with another rule.",
        )


def _refused(what: str, has: str, needs: str, advice: str = _GONE) -> ValueError:
    return ValueError(f"{what}, {has}; it needs {needs}. {advice}")


def _state(name: str, where: str) -> str:
    return f"The state {name!r} of {where}"


def _shown(tensor: Tensor) -> str:
    return f"is {dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)} on {tensor.device}"


def _has_numbers(tensor: Tensor) -> bool:
    return (tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype) in _NUMBERS


def _numbers_of(field: str) -> str:
    names = ", ".join(PLAIN) if field == "real" else "complex64, complex128"
    return f"{field} numbers, one of {names}"


def _check_held(what: str, tensor: Tensor) -> None:
    if in_memory(tensor) and not held(tensor):
        has = "has memory for fewer numbers than its shape"
        raise _refused(what, has, "memory for all of them", "Was its storage freed or resized?")


def _check_written(what: str, tensor: Tensor) -> None:
    """Refuse to write to numbers that are not there, or share memory."""
    _check_held(what, tensor)
    if not apart(tensor.shape, tensor.stride(), 1):
        shared = "has numbers that share memory"
        raise _refused(what, shared, "memory of its own for each", "Try `.data = .data.clone()`.")


def _check_like(
    what: str,
    weight: Tensor,
    tensor: Tensor,
    advice: str,
    integers: bool = False,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Refuse a tensor that does not match the weight, number by number, or has not this other `shape`."""
    shape = tuple(weight.shape) if shape is None else shape
    fits = (tuple(tensor.shape), tensor.device) == (shape, weight.device)
    kind = _has_numbers(tensor) or (integers and tensor.dtype == torch.int8)
    if not fits or not kind or tensor.is_complex() != weight.is_complex():
        numbers = _numbers_of("complex" if weight.is_complex() else "real")
        needs = f"shape {shape} on {weight.device} and {numbers}"
        raise _refused(what, _shown(tensor), needs, advice)
    _check_held(what, tensor)


def _check_slot(
    where: str, name: str, weight: Tensor, slot: Any, scales: Any, shape: tuple[int, ...]
) -> None:
    what = _state(name, where)
    if not isinstance(slot, Tensor) or slot.layout != torch.strided:
        has = f"is {slot.layout}" if isinstance(slot, Tensor) else f"is of type {type(slot).__name__}"
        raise _refused(what, has, "a dense tensor")
    _check_like(what, weight, slot, _GONE, integers=True, shape=shape)
    _check_written(what, slot)
    if slot.dtype == torch.int8:
        _check_scales(_state(scale_of(name), where), slot, scales)
    elif scales is not None:
        has = f"is {dtype_name(slot.dtype)} with scales"
        raise _refused(what, has, "int8 codes with scales", "Were they cast?")


def _check_scales(what: str, codes: Tensor, scales: Any) -> None:
    blocks = -(-codes.numel() // BLOCK)
    needs = f"{blocks} scales, contiguous float32 on {codes.device}"
    if not isinstance(scales, Tensor):
        has = "is missing" if scales is None else f"is of type {type(scales).__name__}"
        raise _refused(what, has, needs)
    fits = (scales.layout, scales.dtype, scales.device) == (torch.strided, torch.float32, codes.device)
    if not fits or scales.numel() != blocks or not scales.is_contiguous():
        raise _refused(what, _shown(scales), needs)
    _check_held(what, scales)


def _check_together(
    where: str, entry: Mapping[str, Any], parts: Mapping[str, Part], together: Sequence[str]
) -> None:
    """Refuse a count or scalar that is none, and state that is there in part: the rest would start at another step."""
    there = {name: entry[name] for name in together if entry.get(name) is not None}
    for name, value in there.items():
        one = parts[name]
        if one.kind in ("count", "number"):
            number = _number(value)
            fits = is_count(number) if one.kind == "count" else one.low <= number <= one.high
            if not (fits and math.isfinite(number)):
                needs = "a whole number ≥ 0" if one.kind == "count" else one.domain
                raise _refused(_state(name, where), f"is {value!r}", needs)
    if list(there) == ["step"] and not _number(entry["step"]):
        return  # a count that waits for the first step
    for name in together if there else ():
        if name not in there:
            needs = f"its own numbers, like {', '.join(map(repr, there))}"
            raise _refused(_state(name, where), "is missing", needs)


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def check_rows(key: int, weight: Tensor, gradient: Any) -> None:
    """Refuse a sparse gradient with a row that the weight does not have: PyTorch looks only where it is asked to."""
    indices, values = gradient._indices(), gradient._values()
    of = f"The sparse gradient of weight {key}, of shape {tuple(weight.shape)},"
    advice = "Try torch.sparse_coo_tensor(..., check_invariants=True) where it is made."
    expected = (indices.shape[1], *weight.shape[gradient.sparse_dim() :])
    if tuple(values.shape) != expected or not held(values) or not held(indices):
        raise ValueError(
            f"{of} has values of shape {tuple(values.shape)} for {indices.shape[1]} indices; it needs {expected}, all "
            f"of it in memory. {advice}"
        )
    if not indices.shape[1]:
        return
    ends = zip(indices.amin(dim=1).tolist(), indices.amax(dim=1).tolist(), weight.shape, strict=False)
    for axis, (least, most, size) in enumerate(ends):
        for index in (least, most):
            if not 0 <= index < size:
                raise ValueError(
                    f"{of} has the index {index} in dimension {axis}; it needs one in [0, {size}). {advice}"
                )
