"""What a step needs of weights, gradients and state, whoever has made them so; looked at when a plan is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from schuss.compile.storage import BLOCK, PLAIN
from schuss.core.checkpoint import REST, Part, is_count, scale_of
from schuss.core.storage import dtype_name
from schuss.torch.layout import apart, held, in_memory

Tensor = torch.Tensor

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
