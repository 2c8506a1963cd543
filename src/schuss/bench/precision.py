"""AdamW on bfloat16 weights, by rounding and by storage of the state, and a step that clips."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import schuss.torch
from schuss.bench.report import Skipped, Timing
from schuss.bench.sizes import Sizes
from schuss.bench.timing import in_turn
from schuss.compile.reference import Reference
from schuss.machine import free_memory
from schuss.rules import AdamW

# AdamW as both have it by default, but for the rate: the check's steps shall be larger than bfloat16's spacing.
RATE, NORM = 0.05, 1.0
NARROW = "torch fused, bfloat16"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "schuss, round to nearest": {},
    "schuss, stochastic rounding": dict(rounding="stochastic"),
    "schuss, compensated": dict(compensated=True),
    "schuss, stochastic rounding, bfloat16 state": dict(rounding="stochastic", state_dtype="bfloat16"),
    "schuss, stochastic rounding, int8 state": dict(rounding="stochastic", state_dtype="int8"),
}
CLIPPED = "schuss, clipping"
UNCLIPPED = "schuss, not clipping"
TWO_PASSES = "clip_grad_norm_, torch fused"

Weights = Sequence[torch.nn.Parameter]
Step = Callable[[], Any]


def _fused(weights: Weights) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=RATE, fused=True)


def _in_two_passes(weights: Weights) -> Step:
    optimizer = _fused(weights)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(weights, NORM)
        optimizer.step()

    return step


def narrow() -> dict[str, Callable[[Weights], Step]]:
    """Who moves bfloat16 weights, with gradients of the same."""
    ours = {
        name: lambda weights, options=options: schuss.torch.AdamW(weights, lr=RATE, **options).step
        for name, options in WAYS.items()
    }
    return {NARROW: lambda weights: _fused(weights).step, **ours}


def clipping() -> dict[str, Callable[[Weights], Step]]:
    """Who clips float32 gradients by their norm and takes a step."""
    return {
        TWO_PASSES: _in_two_passes,
        CLIPPED: lambda weights: schuss.torch.AdamW(weights, lr=RATE, max_norm=NORM).step,
        UNCLIPPED: lambda weights: schuss.torch.AdamW(weights, lr=RATE).step,
    }


def disagreement(make: Callable[[Weights], Step], dtype: torch.dtype) -> str:
    """What a contender gets wrong in three steps with gradients of one sign, or nothing."""
    torch.manual_seed(0)
    start = (1 + torch.rand(5000)).to(dtype)
    weight = torch.nn.Parameter(start.clone())
    weight.grad = (0.5 + torch.rand(5000)).to(dtype)
    meant = Reference(AdamW(lr=RATE), start.double().numpy()).run([weight.grad.double().numpy()] * 3)
    step = make([weight])
    for _ in range(3):
        step()
    # The mean over all weights, and each one: 8-bit state alone may make a step a few percent longer or shorter.
    error = weight.detach().double().numpy() - meant
    worst, mean = np.abs(error).max(), abs(error.mean())
    allowed = 3 * torch.finfo(dtype).eps * 2 + 0.1 * RATE
    if worst > allowed or mean > 0.02 * RATE + torch.finfo(dtype).eps / 4:
        return f"off by {worst:.2g}, on average by {mean:.2g}, after three steps of {RATE:g}"
    return ""


def measure(section: str, sizes: Sizes) -> list[Timing | Skipped]:
    """Both tables, at GPT-2's shapes."""
    found: list[Timing | Skipped] = []
    for title, dtype, makers in (
        ("bfloat16 weights and gradients", torch.bfloat16, narrow()),
        ("float32, clipped to a norm", torch.float32, clipping()),
    ):
        needed = sizes.large.elements * (2 * dtype.itemsize + 8 * len(makers))
        free = free_memory()
        if free is not None and needed > free:
            words = f"{title} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} are free"
            found.append(Skipped(section, words))
            continue
        wrong = {name: problem for name, make in makers.items() if (problem := disagreement(make, dtype))}
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in sizes.large.shapes]
        for weight in weights:
            weight.grad = torch.randn(weight.shape).to(dtype)
        actions = {name: make(weights) for name, make in makers.items() if name not in wrong}
        rounds = in_turn(actions, sizes.rounds, sizes.least) if actions else {}
        del actions, weights
        gc.collect()
        timing = functools.partial(Timing, section, f"{title}, {sizes.large}", "AdamW")
        found += [
            timing(name, problem=wrong[name]) if name in wrong else timing(name, rounds=rounds[name])
            for name in makers
        ]
    return found
