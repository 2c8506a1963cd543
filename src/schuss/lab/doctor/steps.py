"""Every kernel of every page against what the page means, through the PyTorch front as users call it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import schuss.torch as front
from schuss.compile.grammar import options_of_variants
from schuss.compile.reference import Reference
from schuss.lab.doctor.finding import Finding, judged
from schuss.rules import TABLE, Row

SIZES = (0, 1, 63, 40_003)  # the last spans two rows of a launch
STEPS = 6
LARGE = 1_000_003
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
ALLOWED = 16  # rounding errors of the dtype, in units of the largest weight on the way


def kernels(dtypes: tuple[str, ...] = ("float32",)) -> Iterator[Finding]:
    """A few steps of each page, each variant in each dtype, against the float64 reference."""
    for row in TABLE.values():
        worst, kinds = 0.0, options_of_variants(row.rule)
        for options in kinds.values():
            for dtype in dtypes:
                worst = max(worst, deviation(row, options, DTYPES[dtype]))
        about = f"{row.name}, {len(kinds)} {'kernel' if len(kinds) == 1 else 'variants'}"
        yield judged(about, f"≤ {ALLOWED} roundings", f"{worst:.3g} off", worst <= ALLOWED)


def deviation(row: Row, options: dict[str, Any], dtype: torch.dtype) -> float:
    """The largest distance from the reference in units of the dtype's rounding; infinite where NaN."""
    weights = [torch.linspace(-1, 1, size).to(dtype).requires_grad_() for size in SIZES]
    gradients = [[gradient(size, step).to(dtype) for size in SIZES] for step in range(STEPS)]
    references = [Reference(row.rule(**options), wide(w)) for w in weights]
    scales = [np.abs(wide(w)).max(initial=1e-3) for w in weights]
    optimizer = front.optimizer(row.rule)(weights, **options)
    for step in gradients:
        for w, g in zip(weights, step, strict=True):
            w.grad = g
        optimizer.step()
        for i, (reference, g) in enumerate(zip(references, step, strict=True)):
            scales[i] = max(scales[i], np.abs(reference.step(wide(g))).max(initial=0.0))
    off = 0.0
    for w, reference, scale in zip(weights, references, scales, strict=True):
        error = np.abs(wide(w) - reference.w).max(initial=0.0) / (torch.finfo(dtype).eps * scale)
        off = max(off, float("inf") if np.isnan(error) else float(error))
    return off


def sparse_rows() -> Iterator[Finding]:
    """A gradient of some rows, some named twice: those rows move as the rule says, the others not at all."""
    for row in TABLE.values():
        yield sparse(row)


def sparse(row: Row, about: str = "") -> Finding:
    """The same of one rule."""
    rows, touched = torch.tensor([[7, 2, 7, 40]]), torch.tensor([2, 7, 40])
    others = torch.ones(60, dtype=torch.bool)
    others[touched] = False
    weight = torch.linspace(-1, 1, 60 * 4).reshape(60, 4).requires_grad_()
    start = weight.detach().clone()
    optimizer = front.optimizer(row.rule)([weight])
    reference = Reference(replace(row.rule(), **row.sparse), wide(start[touched]))
    scale = 1.0
    for step in range(STEPS):
        # Multiples of 1/8, so that adding up the row that is named twice rounds nothing.
        values = (gradient(16, step).reshape(4, 4) * 8).round() / 8
        weight.grad = torch.sparse_coo_tensor(rows, values.float(), (60, 4), check_invariants=True)
        optimizer.step()
        moved = reference.step(wide(torch.stack([values[1], values[0] + values[2], values[3]])))
        scale = max(scale, float(np.abs(moved).max()))
    found = weight.detach()
    error = np.abs(wide(found[touched]) - reference.w).max() / (torch.finfo(found.dtype).eps * scale)
    still = torch.equal(start[others], found[others])
    measured = f"{error:.3g} off, others {'still' if still else 'MOVED'}"
    return judged(about or row.name, f"≤ {ALLOWED} roundings", measured, bool(error <= ALLOWED) and still)


def threads() -> Iterator[Finding]:
    """A step of a million weights on one thread and on two: the same bits."""
    for name in ("SGD", "AdamW"):
        ends: list[Tensor] = []
        before = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                w = torch.linspace(-1, 1, LARGE).requires_grad_()
                optimizer = getattr(front, name)([w])
                for step in range(2):
                    w.grad = gradient(LARGE, step).float()
                    optimizer.step()
                ends.append(w.detach())
        finally:
            torch.set_num_threads(before)
        same = torch.equal(*ends)
        yield judged(name, "equal bits", "equal" if same else "different", same)


def gradient(size: int, step: int) -> Tensor:
    """Gradients whose size and sign change from weight to weight, and once from step to step."""
    i = torch.arange(size, dtype=torch.float64)
    return (1.5 + torch.sin(1.7 * i + step)) * torch.where(i % 3 == 0, -1.0, 1.0) * (-3 if step == 3 else 1)


def wide(tensor: Tensor) -> NDArray[np.float64]:
    """A tensor's numbers in float64."""
    return tensor.detach().double().numpy()
