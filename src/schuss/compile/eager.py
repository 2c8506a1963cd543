"""A page run as it stands on whole tensors, one operation after another.

Slower than a kernel, and right on every device and dtype that PyTorch has: the path wherever there is no kernel.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

from schuss.compile.formula import Formula
from schuss.compile.matrices import words
from schuss.compile.storage import (
    BLOCK,
    EPSILONS,
    FIRST,
    GOLDEN,
    LEVEL_BITS,
    LEVEL_LEAST,
    LEVEL_MOST,
    LEVEL_OFFSET,
    LEVEL_TOP,
    SECOND,
    Storage,
    columns,
    compute_dtype,
)
from schuss.rules.rule import Rule, maximum, minimum, sign

Tensor = torch.Tensor


@functools.cache
def _words(wide: torch.dtype) -> dict[str, Any]:
    """The vocabulary over tensors that compute in `wide`."""

    def where(condition: Tensor | bool, yes: Any, no: Any) -> Any:
        if not isinstance(condition, Tensor):  # of coefficients alone
            return yes if condition else no
        # Of two plain numbers torch.where makes a tensor of the default dtype, which may be too narrow for them.
        yes, no = (torch.as_tensor(x, dtype=wide, device=condition.device) for x in (yes, no))
        return torch.where(condition, yes, no)

    def over_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
        """The vocabulary's own definition, with its `where` choosing elementwise."""
        return types.FunctionType(function.__code__, {**function.__globals__, "where": where})

    def whole(function: Callable[..., Tensor], **axis: Any) -> Callable[[Tensor], Tensor]:
        """A number of a whole tensor, or of each row or column, of conditions too, summed in float64."""
        return lambda x: function(x.to(wide), **axis, dtype=torch.float64).to(wide)

    def elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        """The function, of one plain number too: of coefficients and of the weight's shape."""
        return lambda x: (
            function(x) if isinstance(x, Tensor) else function(torch.tensor(x, dtype=wide)).item()
        )

    def root_mean_square(x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.linalg.vector_norm(x, dtype=dtype) / max(x.numel(), 1) ** 0.5

    return {
        "abs": abs,
        "column_mean": whole(torch.mean, dim=-2, keepdim=True),
        "exp": elementwise(torch.exp),
        "log": elementwise(torch.log),
        "maximum": over_tensors(maximum),
        "mean": whole(torch.mean),
        "norm": whole(torch.linalg.vector_norm),
        "root_mean_square": whole(root_mean_square),
        "total": whole(torch.sum),
        "minimum": over_tensors(minimum),
        "row_mean": whole(torch.mean, dim=-1, keepdim=True),
        "sign": over_tensors(sign),
        "sqrt": elementwise(torch.sqrt),
        "where": where,
    }


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which the rules move one by one."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


# How numbers are kept: what `storage` says, on tensors

_MASK = 0xFFFFFFFF


def _hashed(x: Tensor, between: Any) -> Tensor:
    """The hash of `storage`, of 32-bit numbers held in 64."""
    x = (x ^ (x >> 16)) * FIRST & _MASK
    x = x ^ between
    x = (x ^ (x >> 15)) * SECOND & _MASK
    return x ^ (x >> 16)


def chances(places: Tensor, chance: tuple[float, float], number: int) -> Tensor:
    """32 random bits for each place (int64) of array `number` in a launch, drawn with the keys of a step."""
    upper = places >> 32
    first, second = (
        _hashed((upper * 0 + int(key) + (2 * number + k) * GOLDEN) & _MASK, upper)
        for k, key in enumerate(chance)
    )
    return _hashed((places + first) & _MASK, second)


def _bits(value: Tensor) -> Tensor:
    """The bits of float32 numbers, as int32."""
    return value.contiguous().view(torch.int32)


def _float(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


_INFINITY, _SIGN = 0x7F800000, -(2**31)


def _magnitude(bits: Tensor) -> Tensor:
    return bits & 0x7FFFFFFF


def _round_by_chance(value: Tensor, dtype: torch.dtype, drawn: Tensor) -> Tensor:
    """Float32 numbers as one of their two neighbours in `dtype`."""
    bits = _bits(value)
    if dtype is torch.bfloat16:
        moved = (bits.long() + (drawn >> 16)) & 0xFFFF0000
        moved = torch.where(moved >= 2**31, moved - 2**32, moved)
    else:
        size = _magnitude(bits).long()
        cut = (size + (drawn >> 19)) & 0xFFFFE000
        least = (_float(size) * 2.0**24 + (drawn >> 8).float() * 2.0**-24).floor() * 2.0**-24
        moved = torch.where(size >= 0x38800000, cut, _bits(least).long()) | (bits.long() & _SIGN)
    return torch.where(_magnitude(bits) < _INFINITY, _float(moved), value).to(dtype)


def _join(upper: Tensor, rest: Tensor) -> Tensor:
    """The float32 numbers that are kept as the nearest 16-bit ones and what is missing to them."""
    wide = upper.float()
    if upper.dtype is torch.float16:
        return wide + rest.float() * 2.0**-11
    bits = _bits(wide)
    whole = _magnitude(bits) + rest.to(torch.int32)
    kept = (_magnitude(bits) < _INFINITY) & (whole >= 0)
    return _float(torch.where(kept, whole, _magnitude(bits)) | (bits & _SIGN))


def _split(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest 16-bit numbers, and what is missing."""
    if dtype is torch.float16:
        upper = value.to(dtype)
        missing = torch.where(upper.isfinite(), (value - upper.float()) * 2.0**11, torch.zeros_like(value))
        return upper, missing.to(dtype)
    bits = _bits(value)
    size = _magnitude(bits).long()
    finite = size < _INFINITY
    rounded = (size + 0x8000) & 0x7FFF0000
    upper = torch.where(finite, _float(rounded | (bits.long() & _SIGN)), value).to(dtype)
    return upper, torch.where(finite, size - rounded, torch.zeros_like(size)).to(torch.int16)


def _in_blocks(flat: Tensor, block: int = BLOCK) -> Tensor:
    """One row a block, the last one filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def from_levels(codes: Tensor, scales: Tensor, block: int = BLOCK) -> Tensor:
    """The float32 numbers of int8 `codes` (any shape) with a scale for each block of them."""
    levels = _in_blocks(codes.reshape(-1), block).to(torch.int32)
    size = _float((levels.abs() + LEVEL_OFFSET) << LEVEL_BITS)
    size = torch.where(levels == 0, torch.zeros_like(size), torch.where(levels < 0, -size, size))
    return (size * scales[:, None]).view(-1)[: codes.numel()].view(codes.shape)


def to_levels(value: Tensor, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Float32 numbers (any shape) as int8 codes and scales: by chance, or to nearest if nothing is `drawn`."""
    blocks = _in_blocks(value.reshape(-1))
    most = _magnitude(_bits(blocks)).amax(dim=1).clamp(min=LEVEL_LEAST)
    scales = _float(most) * torch.tensor(1 / LEVEL_TOP, dtype=torch.float32, device=most.device)
    bits = _bits(blocks * (LEVEL_TOP / _float(most))[:, None])
    half = 1 << (LEVEL_BITS - 1)
    raise_by = half if drawn is None else _in_blocks(drawn.reshape(-1)) >> (32 - LEVEL_BITS)
    levels = ((_magnitude(bits).long() + raise_by) >> LEVEL_BITS) - LEVEL_OFFSET
    levels = levels.clamp(1, LEVEL_MOST) * (blocks != 0)
    codes = torch.where(bits < 0, -levels, levels).to(torch.int8)
    return codes.view(-1)[: value.numel()].view(value.shape), scales


def _read(storage: Storage, array: Tensor, beside: Tensor | None) -> Tensor:
    if storage.name == "int8":
        assert beside is not None
        return from_levels(array, beside)
    return array if beside is None else _join(array, beside)


def _written(
    storage: Storage, array: Tensor, beside: Tensor | None, value: Tensor, drawn: Callable[[], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """What is to be written, and where, so that these numbers are kept."""
    if storage.name == "int8":
        assert beside is not None
        codes, scales = to_levels(value.float(), drawn())
        return [(array, codes), (beside, scales.view(beside.shape))]
    if beside is not None:
        upper, rest = _split(value.float(), array.dtype)
        return [(array, upper), (beside, rest)]
    if storage.drawn:
        value = _round_by_chance(value.float(), array.dtype, drawn())
    return [(array, value)]


def step(
    formula: Formula,
    kept: tuple[str, ...],
    memory: Sequence[Tensor],
    numbers: Sequence[float],
    starts: Tensor | None = None,
    rule: Rule | None = None,
) -> None:
    """Move a weight and its state by one step, in place."""
    with torch.no_grad():
        for array, value in moved(formula, kept, memory, numbers, starts, rule):
            array.copy_(value)


@torch.no_grad()
def moved(
    formula: Formula,
    kept: tuple[str, ...],
    memory: Sequence[Tensor],
    numbers: Sequence[float],
    starts: Tensor | None = None,
    rule: Rule | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Where a weight and its state are, each with what it is after one step; compute in float32 or wider.

    `memory` and `numbers` are as a kernel's columns and its row of coefficients. `starts` are the places where
    stretches of the weight of equal length start: one for a whole weight, one a row for some rows. A formula of
    matrices needs the `rule`.
    """
    if not memory[0].numel():
        return []
    names = ("w", "g", *formula.slots)
    cells = columns(names, kept)
    arrays = {column.name: _real(array) for column, array in zip(cells, memory, strict=True)}
    storages = {column.name: column.storage for column in cells[: len(names)]}
    besides = {
        name: arrays[f"{name}_{storage.beside.name}"] if storage.beside else None
        for name, storage in storages.items()
    }
    wide = getattr(torch, compute_dtype(kept))
    w, g, *slots = (_read(storages[name], arrays[name], besides[name]).to(wide) for name in names)
    scale, *coefficients = numbers
    chance = tuple(coefficients[len(formula.coefficients) :])
    epsilon = EPSILONS[storages["w"].dtype]
    vocabulary = {**_words(wide), "machine_epsilon": lambda x: epsilon}
    if rule is not None:
        vocabulary |= words(rule, memory[0].shape)
    new = formula.bind(vocabulary)(w, scale * g, *slots, *coefficients[: len(formula.coefficients)])
    found: list[tuple[Tensor, Tensor]] = []
    for one, name in zip(new, ("w", *formula.slots), strict=True):
        # It may be one number for the whole tensor.
        value = torch.as_tensor(one, dtype=wide, device=w.device).expand(arrays[name].shape)

        def drawn(number: int = names.index(name), value: Tensor = value) -> Tensor:
            assert starts is not None
            inner = torch.arange(value.numel() // len(starts), device=value.device)
            return chances((starts[:, None] + inner).view(value.shape), (chance[0], chance[1]), number)

        found += _written(storages[name], arrays[name], besides[name], value, drawn)
    return found
