"""A page run as it stands on whole tensors, one operation after another.

Slower than a kernel, and right on every device and dtype that PyTorch has: the path wherever there is no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from schuss.compile.formula import Formula
from schuss.rules.rule import maximum, minimum, sign

Tensor = torch.Tensor


def _over_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The vocabulary's own definition, with its `where` choosing elementwise."""
    return type(function)(function.__code__, {**function.__globals__, "where": torch.where})  # type: ignore[call-arg]


WORDS: dict[str, Any] = {
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "maximum": _over_tensors(maximum),
    "minimum": _over_tensors(minimum),
    "sign": _over_tensors(sign),
    "sqrt": torch.sqrt,
    "where": torch.where,
}


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which the rules move one by one."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@torch.no_grad()
def step(
    formula: Formula, w: Tensor, g: Tensor, slots: list[Tensor], scale: float, scalars: Mapping[str, float]
) -> None:
    """Move `w` and its `slots` (same shape each) by one step, in place; compute in float32 or wider."""
    tensors = [_real(t) for t in (w, g, *slots)]
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    w32, g32, *slots32 = (t.to(wide) for t in tensors)
    new = formula.bind(WORDS)(w32, scale * g32, *slots32, *(scalars[name] for name in formula.coefficients))
    for old, value in zip((tensors[0], *tensors[2:]), new, strict=True):
        old.copy_(value)
