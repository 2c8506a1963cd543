"""Every kernel of every rule against what the rule means, through the PyTorch API as users call it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import schuss.torch as api
from schuss.compile.formula import formula
from schuss.compile.grammar import options_of_variants
from schuss.compile.reference import Reference
from schuss.lab.doctor.finding import Finding, judged
from schuss.rules import TABLE, Row, Rule

Array = NDArray[np.float64]
SIZES = (0, 1, 63, 40_003)  # the last spans two rows of a launch
STEPS = 6
LARGE = 1_000_003
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
ALLOWED = 16  # rounding errors of the dtype, in units of the largest weight that there was


def gradient(size: int, step: int) -> Tensor:
    """Gradients whose size and sign change from weight to weight, and once from step to step."""
    i = torch.arange(size, dtype=torch.float64)
    return (1.5 + torch.sin(1.7 * i + step)) * torch.where(i % 3 == 0, -1.0, 1.0) * (-3 if step == 3 else 1)


def gradients(weights: Sequence[Tensor], first: int = 0) -> list[list[Tensor]]:
    """Those of some steps, for each weight in its dtype and shape."""
    return [
        [gradient(w.numel(), step).to(w).reshape(w.shape) for w in weights]
        for step in range(first, first + STEPS)
    ]


def shape_of(rule: type[Rule], size: int) -> tuple[int, ...]:
    """The shape of a weight of so many numbers: a vector, or for a rule of matrices or rows a matrix."""
    one = formula(rule)
    if not (one.of_matrices or one.of_rows or rule.shapes):
        return (size,)
    rows = next((n for n in range(math.isqrt(size), 0, -1) if size % n == 0), 0)
    return (rows, size // rows) if rows else (0, 3)


def leaf(rule: type[Rule], size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """A weight from −1 to 1, as the rule moves them."""
    return torch.linspace(-1, 1, size).reshape(shape_of(rule, size)).to(device, dtype).requires_grad_()


def wide(tensor: Tensor) -> Array:
    """A tensor's numbers in float64, in memory of their own."""
    return tensor.detach().double().cpu().numpy().copy()


def arguments(rule: type[Rule], options: dict[str, Any]) -> dict[str, Any]:
    """A rule's own hyperparameters as a constructor takes them."""
    made, tuples = rule(**options), rule.tuples.items()
    inside = {part for _, parts in tuples for part in parts}
    return {name: value for name, value in options.items() if name not in inside} | {
        name: tuple(getattr(made, part) for part in parts)
        for name, parts in tuples
        if not options.keys().isdisjoint(parts)
    }


def stepped(
    row: Row, options: dict[str, Any], weights: list[Tensor], given: Iterable[Sequence[Tensor]], **more: Any
) -> Any:
    """An optimizer of these weights that has taken a step with each of the gradients."""
    optimizer = api.optimizer(row.rule)(weights, **arguments(row.rule, options), **more)
    go_on(optimizer, weights, given)
    return optimizer


def go_on(optimizer: Any, weights: list[Tensor], given: Iterable[Sequence[Tensor]]) -> None:
    """Take a step with each of the gradients."""
    for step in given:
        for w, g in zip(weights, step, strict=True):
            w.grad = g
        optimizer.step()


def roundings(
    rule: Rule,
    starts: Sequence[Array],
    given: Iterable[Sequence[Array]],
    found: Sequence[Array],
    eps: float = float(np.finfo(np.float64).eps),
    least: float = 1.0,
    **options: Any,
) -> float:
    """The largest distance from the reference, in units of the rounding of the largest weight on its trajectory.

    Infinite where NaN. `least` is what the largest weight counts at least. Products of matrices are rounded too.
    `options` are those of the change.
    """
    eps += _of_products(rule) * min(eps, float(np.finfo(np.float32).eps))
    references = [Reference(rule, start, **options) for start in starts]
    scales = [max(least, np.abs(start).max(initial=0.0)) for start in starts]
    for step in given:
        for i, (reference, g) in enumerate(zip(references, step, strict=True)):
            scales[i] = max(scales[i], np.abs(reference.step(g)).max(initial=0.0))
    off = [
        np.abs(end - reference.w).max(initial=0.0) / (eps * scale)
        for end, reference, scale in zip(found, references, scales, strict=True)
    ]
    return float("inf") if np.isnan(off).any() else float(max(off))


def _of_products(rule: Rule) -> float:
    """How many times the iterations of a rule of matrices may make a rounding larger: their slope at 0."""
    return math.prod(a for a, _, _ in rule.iterations) if formula(rule).of_matrices else 0.0


def within(off: float, about: str = "") -> Finding:
    """The finding that so many roundings make."""
    return judged(about, f"≤ {ALLOWED} roundings", f"{off:.3g} off", off <= ALLOWED)


def deviation(row: Row, options: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> float:
    """How many roundings some steps of a rule are from the reference, over tensors of all sizes."""
    weights = [leaf(row.rule, size, dtype, device) for size in SIZES]
    starts, given = [wide(w) for w in weights], gradients(weights)
    stepped(row, options, weights, given)
    found, wides = [wide(w) for w in weights], ([wide(g) for g in step] for step in given)
    return roundings(row.rule(**options), starts, wides, found, torch.finfo(dtype).eps, least=1e-3)


def kernels(dtypes: tuple[str, ...] = ("float32",)) -> Iterator[Finding]:
    """A few steps of each rule, each variant in each dtype, against the float64 reference."""
    for row in TABLE.values():
        kinds = options_of_variants(row.rule)
        off = [deviation(row, options, DTYPES[dtype]) for options in kinds.values() for dtype in dtypes]
        about = f"{row.name}, {len(kinds)} {'kernel' if len(kinds) == 1 else 'variants'}"
        yield within(max(off, default=0.0), about)


def sparse_rows() -> Iterator[Finding]:
    """A gradient of some rows, some named twice: those rows move as the rule says, the others not at all.

    Of the rules that can move some rows: no word of theirs is of a whole tensor.
    """
    for row in TABLE.values():
        if not formula(row.rule).passes:
            yield sparse(row, row.name)


def sparse(row: Row, about: str = "") -> Finding:
    """The same of one rule."""
    rows, touched = torch.tensor([[7, 2, 7, 40]]), torch.tensor([2, 7, 40])
    others = torch.ones(60, dtype=torch.bool)
    others[touched] = False
    weight = torch.linspace(-1, 1, 60 * 4).reshape(60, 4).requires_grad_()
    start = weight.detach().clone()
    # Multiples of 1/8, so that adding up the row that is named twice rounds nothing.
    values = [(gradient(16, step).reshape(4, 4) * 8).round() / 8 for step in range(STEPS)]
    given = [torch.sparse_coo_tensor(rows, v.float(), (60, 4), check_invariants=True) for v in values]
    stepped(row, {}, [weight], ([g] for g in given))
    found, rule = weight.detach(), replace(row.rule(), **row.sparse)
    sums = ([wide(torch.stack([v[1], v[0] + v[2], v[3]]))] for v in values)
    eps = torch.finfo(torch.float32).eps
    off = roundings(rule, [wide(start[touched])], sums, [wide(found[touched])], eps)
    still = torch.equal(start[others], found[others])
    measured = f"{off:.3g} off, others {'still' if still else 'MOVED'}"
    return judged(about, f"≤ {ALLOWED} roundings", measured, off <= ALLOWED and still)


def threads() -> Iterator[Finding]:
    """A step of a million weights on one thread and on two: the same bits."""
    for name in ("SGD", "AdamW"):
        ends = [leaf(TABLE[name].rule, LARGE) for _ in range(2)]
        before = torch.get_num_threads()
        try:
            for count, w in enumerate(ends, start=1):
                torch.set_num_threads(count)
                stepped(TABLE[name], {}, [w], gradients([w])[:2])
        finally:
            torch.set_num_threads(before)
        yield equal(ends[:1], ends[1:], name)


def equal(one: Sequence[Tensor], other: Sequence[Tensor], about: str = "") -> Finding:
    """Whether tensors have the same bits."""
    same = all(torch.equal(a.detach(), b.detach()) for a, b in zip(one, other, strict=True))
    return judged(about, "equal bits", "equal" if same else "different", same)
