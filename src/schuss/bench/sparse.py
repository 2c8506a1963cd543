"""An embedding of which a step touches a few rows, compared with a step of the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

import schuss.torch
from schuss.bench.report import Timing
from schuss.bench.sizes import Sizes, count
from schuss.bench.timing import Action, timings
from schuss.compile.reference import Reference
from schuss.rules import TABLE, Adam

DENSE, OURS, THEIRS = "schuss dense", "schuss sparse", "torch SparseAdam"
_OPTIMIZERS = {OURS: schuss.torch.Adam, THEIRS: torch.optim.SparseAdam}


def gradients(rows: int, width: int, touched: float) -> dict[str, torch.Tensor]:
    """The gradient of an embedding, as it comes (in any order, a quarter of the rows twice) and coalesced."""
    distinct = max(1, round(rows * touched))
    found = torch.randperm(rows)[:distinct]
    indices = torch.cat([found, found[: distinct // 4]])
    indices = indices[torch.randperm(len(indices))]
    values = torch.randn(len(indices), width)
    loose = torch.sparse_coo_tensor(indices[None], values, (rows, width), check_invariants=False)
    return {"coalesced": loose.coalesce(), "uncoalesced": loose}


def disagreement(contender: str, kind: str) -> str:
    """What a contender gets wrong in three steps, touched rows and others, or nothing."""
    torch.manual_seed(0)
    start, gradient = torch.randn(50, 3), gradients(50, 3, 0.2)[kind]
    weight = torch.nn.Parameter(start.clone())
    weight.grad = gradient
    optimizer = _OPTIMIZERS[contender]([weight], lr=1e-3)
    for _ in range(3):
        optimizer.step()
    dense = gradient.to_dense().numpy()
    touched = np.abs(dense).sum(axis=1) > 0
    reference = Reference(dataclasses.replace(Adam(lr=1e-3), **TABLE["Adam"].sparse), start.numpy()[touched])
    meant = start.numpy().astype(np.float64)
    meant[touched] = reference.run([dense[touched]] * 3)
    error = np.abs(weight.detach().numpy() - meant).max()
    return "" if error < 2e-6 else f"off by {error:.2g} after three steps of 1e-3"


def measure(section: str, sizes: Sizes) -> list[Timing]:
    """Adam on all rows, and on those touched, here and by torch's optimizer for sparse gradients."""
    torch.manual_seed(0)
    rows, width = sizes.embedding
    table = torch.randn(rows, width)
    whole = torch.nn.Parameter(table)
    whole.grad = torch.randn_like(table)
    steps: dict[str, Action | str] = {DENSE: schuss.torch.Adam([whole]).step}
    for contender, optimizer in _OPTIMIZERS.items():
        for kind, gradient in gradients(rows, width, sizes.touched).items():
            weight = torch.nn.Parameter(table)  # the same memory
            weight.grad = gradient
            steps[f"{contender}, {kind}"] = disagreement(contender, kind) or optimizer([weight], lr=1e-3).step
    workload = f"embedding of {count(rows)} × {width}, {100 * sizes.touched:g} % of the rows touched"
    return timings((section, workload, "Adam"), steps, sizes.rounds, sizes.least)
