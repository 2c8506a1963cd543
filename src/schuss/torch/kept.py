"""How a weight's state lies in tensors: new, read from a checkpoint, and as a launch takes it.

Each slot is a tensor under its name. What is kept beside it (`storage`) stands under a name of its own: the scales of
`exp_avg` in blocks under `exp_avg_scale`, what rounding took from the weight under `rest`.

In a checkpoint, codes stand under `exp_avg_codes`: torch.optim would take them for numbers, and what it misses it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, cast

import torch

from schuss.compile import eager
from schuss.compile.checkpoint import REST, scale_of
from schuss.compile.front import dtype_name, slot_dtype, slot_storage
from schuss.compile.storage import BLOCK, PLAIN, STORAGES
from schuss.torch.layout import held, in_memory

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


def check(key: int, weight: Tensor, gradient: Tensor, entry: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a weight, a gradient or state that a step could not walk over, whoever has made it so.

    `key` is the weight's place among all, `names` are those of its slots. Nothing is changed here, so a step that is
    refused has changed nothing.
    """
    where = f"weight {key}, of shape {tuple(weight.shape)}"

    def refuse(what: str, has: str, needs: str, advice: str) -> ValueError:
        return ValueError(f"{what}{where}, {has}; it needs {needs}. {advice}")

    own = "The "
    if weight.layout != torch.strided or not _has_numbers(weight):
        raise refuse(
            own,
            f"is {dtype_name(weight.dtype)}, {weight.layout}",
            _numbers_of("real"),
            "Cast it, or freeze it.",
        )
    _check_held(weight, partial(refuse, own, *_FREED))
    if weight.numel() and any(
        size > 1 and not stride for size, stride in zip(weight.shape, weight.stride(), strict=True)
    ):
        raise refuse(
            own, "has numbers that share memory", "memory of its own for each", "Try `.data = .data.clone()`."
        )
    field = "complex" if weight.is_complex() else "real"

    def like_weight(tensor: Tensor, what: str, advice: str, integers: bool = False) -> None:
        fits = (tensor.shape, tensor.device) == (weight.shape, weight.device)
        kind = _has_numbers(tensor) or (integers and tensor.dtype == torch.int8)
        if not fits or not kind or tensor.is_complex() != weight.is_complex():
            needs = f"shape {tuple(weight.shape)} on {weight.device} and {_numbers_of(field)}"
            raise refuse(what, _short(tensor), needs, advice)
        _check_held(tensor, partial(refuse, what, *_FREED))

    gone = "Was it replaced, or the weight's `.data`? `optimizer.state.clear()` starts the state anew."
    if gradient.layout not in (torch.strided, torch.sparse_coo):
        raise refuse(
            "The gradient of ", f"is {gradient.layout}", "a dense or a COO tensor", "Try `.to_dense()`."
        )
    like_weight(gradient, "The gradient of ", "Was it replaced or cast through `.data`?")
    if gradient.layout == torch.sparse_coo:
        check_rows(key, weight, gradient)
    for name in names:
        slot, scales = entry.get(name), entry.get(scale_of(name))
        of = f"The state {name!r} of "
        if slot is None:
            continue
        if not isinstance(slot, Tensor) or slot.layout != torch.strided:
            has = f"is {slot.layout}" if isinstance(slot, Tensor) else f"is of type {type(slot).__name__}"
            raise refuse(of, has, "a dense tensor", gone)
        like_weight(slot, of, gone, integers=True)
        if slot.dtype == torch.int8:
            beside = f"The state {scale_of(name)!r} of "
            _check_scales(slot, scales, partial(refuse, beside, advice=gone))
            _check_held(cast(Tensor, scales), partial(refuse, beside, *_FREED))
        elif scales is not None:
            raise refuse(
                of, f"is {dtype_name(slot.dtype)} with scales", "int8 codes with scales", "Were they cast?"
            )
    rest = entry.get(REST)
    if isinstance(rest, Tensor) and rest.shape == weight.shape and rest.layout == torch.strided:
        _check_held(rest, partial(refuse, f"The state {REST!r} of ", *_FREED))
    elif rest is not None:
        has = _short(rest) if isinstance(rest, Tensor) else f"is of type {type(rest).__name__}"
        raise refuse(f"The state {REST!r} of ", has, f"a dense tensor of shape {tuple(weight.shape)}", gone)


_FREED = (
    "has memory for fewer numbers than its shape",
    "memory for all of them",
    "Was its storage freed or resized?",
)


def _numbers_of(field: str) -> str:
    names = ", ".join(PLAIN) if field == "real" else "complex64, complex128"
    return f"{field} numbers, one of {names}"


def _check_held(tensor: Tensor, refusal: Callable[[], ValueError]) -> None:
    if in_memory(tensor) and not held(tensor):
        raise refusal()


def _check_scales(codes: Tensor, scales: Any, refuse: Callable[[str, str], ValueError]) -> None:
    blocks = -(-codes.numel() // BLOCK)
    needs = f"{blocks} scales, contiguous float32 on {codes.device}"
    if not isinstance(scales, Tensor):
        raise refuse("is missing" if scales is None else f"is of type {type(scales).__name__}", needs)
    fits = (scales.layout, scales.dtype, scales.device) == (torch.strided, torch.float32, codes.device)
    if not fits or scales.numel() != blocks or not scales.is_contiguous():
        raise refuse(_short(scales), needs)


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
