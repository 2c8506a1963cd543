"""A page run as it stands on whole tensors, one operation after another.

Slower than a kernel, and right on every device and dtype that PyTorch has: the path wherever there is no kernel.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from schuss.compile.formula import Formula
from schuss.rules.rule import maximum, minimum, sign

Tensor = torch.Tensor


@functools.cache
def _words(wide: torch.dtype) -> dict[str, Any]:
    """The vocabulary over tensors that compute in `wide`."""

    def where(condition: Tensor, yes: Any, no: Any) -> Tensor:
        # Of two plain numbers torch.where makes a tensor of the default dtype, which may be too narrow for them.
        yes, no = (torch.as_tensor(x, dtype=wide, device=condition.device) for x in (yes, no))
        return torch.where(condition, yes, no)

    def over_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
        """The vocabulary's own definition, with its `where` choosing elementwise."""
        return types.FunctionType(function.__code__, {**function.__globals__, "where": where})

    return {
        "abs": torch.abs,
        "exp": torch.exp,
        "log": torch.log,
        "maximum": over_tensors(maximum),
        "minimum": over_tensors(minimum),
        "sign": over_tensors(sign),
        "sqrt": torch.sqrt,
        "where": where,
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
    new = formula.bind(_words(wide))(
        w32, scale * g32, *slots32, *(scalars[name] for name in formula.coefficients)
    )
    for old, value in zip((tensors[0], *tensors[2:]), new, strict=True):
        old.copy_(value)
