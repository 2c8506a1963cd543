"""The norm of all gradients together, as clipping by it needs it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from schuss.compile import norm
from schuss.compile.launch import Table, WholeTensors
from schuss.compile.storage import PLAIN, columns
from schuss.core.norm import combined
from schuss.errors import refusal
from schuss.torch.sharded import Shards, checked

Tensor = torch.Tensor

_NAMES = {getattr(torch, name): name for name in PLAIN}


@torch.no_grad()
def global_norm(params: Tensor | Iterable[Tensor], *, process_group: Any = None) -> Tensor:
    """The 2-norm of the gradients of `params`, all together: a float64 number in a tensor, where the gradients are.

    Each gradient is read once and none is written to; those that are None count as 0. It is infinite or NaN if one of
    their numbers is, so whether it is finite says whether all of them are.

    Of DTensors it is the norm of the whole gradients, the same on every rank, and every rank has to ask for it. So it
    is of plain tensors, each on one rank of a `process_group` only; without one it is of this rank's.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, -4.0])
    >>> global_norm([weight]).item()
    5.0
    """
    if isinstance(params, Tensor):
        params = [params]
    weights = list(params) if isinstance(params, Iterable) else []  # pyright: ignore[reportUnnecessaryIsInstance]
    if not isinstance(params, Iterable) or not all(isinstance(weight, Tensor) for weight in weights):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise refusal("params", params, "weights: tensors", "Try global_norm(model.parameters()).")
    gradients = [weight.grad for weight in weights]
    shards = Shards(weights, checked(process_group))
    shards.check()
    if not shards.several:
        return _norm_there([gradient for gradient in gradients if gradient is not None])
    norm, _ = shards.norm(gradients, local_norm)
    places = [gradient.device for gradient in gradients if gradient is not None]
    return torch.tensor(norm, dtype=torch.float64, device=places[0] if places else weights[0].device)


def local_norm(gradients: Sequence[Tensor]) -> float:
    """The norm of gradients that lie on this rank, wherever."""
    return float(_norm_there(gradients))


def _norm_there(gradients: Sequence[Tensor]) -> Tensor:
    """The norm as a tensor, where the gradients are: on a GPU nobody waits for it."""
    here = [gradient for gradient in gradients if gradient.device.type == "cpu"]
    there = [_numbers(gradient) for gradient in gradients if gradient.device.type != "cpu"]
    if not there:
        return torch.tensor(_norm_here(here), dtype=torch.float64, device="cpu")
    parts = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in there]
    parts += [parts[0].new_tensor(_norm_here(here))] if here else []
    return torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts]))


def _norm_here(gradients: Sequence[Tensor]) -> float:
    by_dtype: dict[str, list[Tensor]] = {}
    others: list[Tensor] = []
    for gradient in map(_numbers, gradients):
        if type(gradient) is Tensor and gradient.dtype in _NAMES and gradient.is_contiguous():
            by_dtype.setdefault(_NAMES[gradient.dtype], []).append(gradient)
        else:
            others.append(gradient)
    tables = [_table(dtype, tensors) for dtype, tensors in by_dtype.items()]
    return norm_of(tables, others, gradients, torch.get_num_threads())


def _table(dtype: str, gradients: Sequence[Tensor]) -> Table:
    table = WholeTensors(columns(("w", "g"), (dtype, dtype)), [gradient.numel() for gradient in gradients])
    table.place(1, np.array([gradient.data_ptr() for gradient in gradients], dtype=np.int64))
    return table


def norm_of(
    tables: Sequence[Table], others: Sequence[Tensor], every: Sequence[Tensor], workers: int
) -> float:
    """The norm of the gradients that `tables` point at and of the `others`, which together are `every` one.

    NaN or infinite if one of their numbers is.
    """
    squares = [norm.square(table, workers) for table in tables]
    squares += [size * size for size in map(_scaled_norm, others)]  # `** 2` would raise where it overflows
    return combined(sum(squares), map(_scaled_norm, every))


def _numbers(gradient: Tensor) -> Tensor:
    """All numbers of a gradient, as they are: two for each complex one, those of the rows that a sparse one has."""
    gradient = gradient.detach()
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce().values()
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return gradient.resolve_neg()


def _scaled_norm(gradient: Tensor) -> float:
    """One gradient's norm in float64, measured in units of its largest number, so that no square is infinite."""
    flat = _numbers(gradient).double().abs()
    most = float(flat.amax()) if flat.numel() else 0.0
    if not 0 < most < math.inf:
        return most
    return most * float(torch.linalg.vector_norm(flat / most))
