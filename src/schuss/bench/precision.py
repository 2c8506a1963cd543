"""AdamW on bfloat16 weights, by rounding and by storage of the state, and a step that clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import schuss.torch
from schuss.bench import steps
from schuss.bench.report import Skipped, Timing
from schuss.bench.sizes import Sizes
from schuss.bench.timing import Action, timings, too_large, wall_seconds
from schuss.compile.reference import Reference
from schuss.rules import AdamW

# AdamW as both have it by default, but for the rate: the check's steps shall be larger than bfloat16's spacing.
RATE, NORM = 0.05, 1.0

Weights = Sequence[torch.nn.Parameter]
Step = Callable[[], Any]
Makers = Mapping[str, Callable[[Weights], Step]]


def _ours(**options: Any) -> Callable[[Weights], Step]:
    return lambda weights: schuss.torch.AdamW(weights, lr=RATE, **options).step


def _fused(weights: Weights) -> Step:
    return torch.optim.AdamW(weights, lr=RATE, fused=True).step


def _in_two_passes(weights: Weights) -> Step:
    fused = _fused(weights)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(weights, NORM)
        fused()

    return step


# Who moves bfloat16 weights, with gradients of the same; and who clips float32 gradients by their norm.
LOW_PRECISION: Makers = {
    "torch fused, bfloat16": _fused,
    "schuss, round to nearest": _ours(),
    "schuss, stochastic rounding": _ours(rounding="stochastic"),
    "schuss, compensated": _ours(compensated=True),
    "schuss, stochastic rounding, bfloat16 state": _ours(rounding="stochastic", state_dtype="bfloat16"),
    "schuss, stochastic rounding, int8 state": _ours(rounding="stochastic", state_dtype="int8"),
}
CLIPPING: Makers = {
    "clip_grad_norm_, torch fused": _in_two_passes,
    "schuss, clipping": _ours(max_norm=NORM),
    "schuss, not clipping": _ours(),
}
PARTS: Mapping[str, tuple[torch.dtype, Makers]] = {
    "bfloat16 weights and gradients": (torch.bfloat16, LOW_PRECISION),
    "float32, clipped to a norm": (torch.float32, CLIPPING),
}


def disagreement(make: Callable[[Weights], Step], dtype: torch.dtype, device: str = "cpu") -> str:
    """What a contender gets wrong in three steps with gradients of one sign, or nothing."""
    torch.manual_seed(0)
    start = (1 + torch.rand(5000)).to(device, dtype)
    weight = torch.nn.Parameter(start.clone())
    weight.grad = (0.5 + torch.rand(5000)).to(device, dtype)
    gradient = weight.grad.double().cpu().numpy()
    meant = Reference(AdamW(lr=RATE), start.double().cpu().numpy()).run([gradient] * 3)
    step = make([weight])
    for _ in range(3):
        step()
    # The mean over all weights, and each one: 8-bit state alone may make a step a few percent longer or shorter.
    error = weight.detach().double().cpu().numpy() - meant
    worst, mean = np.abs(error).max(), abs(error.mean())
    allowed = 3 * torch.finfo(dtype).eps * 2 + 0.1 * RATE
    if worst > allowed or mean > 0.02 * RATE + torch.finfo(dtype).eps / 4:
        return f"off by {worst:.2g}, on average by {mean:.2g}, after three steps of {RATE:g}"
    return ""


def measure(
    title: str,
    section: str,
    sizes: Sizes,
    device: str = "cpu",
    seconds: Callable[[Action, int], float] = wall_seconds,
) -> list[Timing] | list[Skipped]:
    """One of `PARTS`, at GPT-2's shapes."""
    dtype, makers = PARTS[title]
    needed = sizes.large.elements * (2 * dtype.itemsize + 8 * len(makers))
    if device == "cpu" and (skipped := too_large(section, title, needed)):
        return skipped
    wrong = {name: disagreement(make, dtype, device) for name, make in makers.items()}
    weights = steps.weights(sizes.large, device, dtype)
    return timings(
        ("precision" if device == "cpu" else "gpu-precision", f"{title}, {sizes.large}", "AdamW"),
        {name: wrong[name] or make(weights) for name, make in makers.items()},
        sizes.rounds,
        sizes.least,
        seconds=seconds,
    )
