"""The kernels on a GPU: their speed compared with a copy's, and what a step at GPT-2's shapes asks of the driver.

Every optimizer in float32, AdamW in other precisions too. At GPT-2's shapes AdamW clips as well, compared with torch's
two passes. Times are the device's own, from its events; what the host does is timed apart, while the device is busy.
"""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from schuss.bench import check
from schuss.bench.check import Make
from schuss.bench.contenders import CASES, HEADLINE, OURS, Case, contenders, disagreement
from schuss.bench.report import Driver, Record, Skipped, Timing
from schuss.bench.sizes import Sizes, count
from schuss.bench.steps import weights
from schuss.bench.timing import Action, in_turn, timings, wall_seconds
from schuss.compile import device
from schuss.compile.front import slot_dtype, slot_storage, weight_storage
from schuss.compile.storage import columns

FUSED, CLIPPED, TORCH_CLIPPED = "torch fused", "schuss, clipped", "torch, clipped"
# How AdamW's numbers are stored, except in float32: the dtype of weights and gradients, and the options.
PRECISIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bfloat16", {}),
    ("bfloat16", {"rounding": "stochastic"}),
    ("bfloat16", {"compensated": True}),
    ("bfloat16", {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    ("bfloat16", {"rounding": "stochastic", "state_dtype": "int8"}),
    ("float32", {"state_dtype": "int8"}),
)
Measure = Callable[[str, Sizes], Sequence[Record]]
CLIPPING: dict[str, Any] = {"max_norm": 1.0, "skip_nonfinite": True}
# What waits for the device, as the profiler names the driver's calls (CUDA's and HIP's).
WAITS = ("Synchronize", "cudaMemcpy", "hipMemcpy", "hipMemcpyWithStream")


def missing() -> str:
    """Why nothing can be measured here, or nothing."""
    if not torch.cuda.is_available():
        return "there is no CUDA or ROCm device here"
    if not device.runs_on(torch.device("cuda", torch.cuda.current_device())):
        return f"{torch.cuda.get_device_name()} has no kernels (Triton installed, and Ampere or later, are needed)"
    return ""


def guarded(measure: Measure) -> Measure:
    """`measure`, where there is a GPU with enough memory; elsewhere a word on why not."""

    def run(section: str, sizes: Sizes) -> Sequence[Record]:
        reason = missing()
        if reason:
            return [Skipped(section, reason)]
        try:
            return measure(section, sizes)
        except torch.OutOfMemoryError as problem:
            return [Skipped(section, f"the GPU has too little free memory ({str(problem).splitlines()[0]})")]
        finally:
            gc.collect()  # an optimizer and its hooks hold each other, and the next one needs the memory
            torch.cuda.empty_cache()

    return run


def device_seconds(action: Action, times: int) -> float:
    """A call's time on the device, by its events, over five calls or more."""
    calls = max(5, times)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def host_seconds(action: Action, times: int) -> float:
    """How long the host is busy with a call, while the device works through what it was given before."""
    torch.cuda.synchronize()
    took = wall_seconds(action, max(20, times))
    torch.cuda.synchronize()
    return took


def difference(make: Make, dtype: str, device: str) -> str:
    """How far this contender's weights go elsewhere than on the CPU, whose kernels draw the same, if it is far."""
    start, given = check.weights("float32"), check.gradients("float32")
    here, there = (
        check.moved_by(make, one, dtype)([w.copy() for w in start], given) for one in ("cpu", device)
    )
    before = [torch.from_numpy(w).to(getattr(torch, dtype)).float().numpy() for w in start]
    apart = sum(float(np.square(a - b).sum()) for a, b in zip(here, there, strict=True))
    moved = sum(float(np.square(a - w).sum()) for a, w in zip(here, before, strict=True))
    off = (apart / moved) ** 0.5 if moved else np.inf
    return "" if off <= 0.01 else f"moves the weights {100 * off:.2g} % elsewhere than on the CPU"


def _float32(case: Case, device: str) -> tuple[dict[str, Make], dict[str, str]]:
    """Ours and torch's fused one, and what is wrong with either."""
    found = {name: make for name, make in contenders(case).items() if name in (OURS, FUSED)}
    return found, {name: disagreement(case, make, device) for name, make in found.items()}


def _compared_with_a_copy(
    label: tuple[str, str, str],
    makers: Mapping[str, Make],
    wrong: Mapping[str, str],
    moved: int,
    sizes: Sizes,
    device: str,
    dtype: str = "float32",
) -> list[Timing]:
    """A step on a gigabyte of float32 weights, or as many others, and a float32 copy of as many, in turn."""
    own = weights(sizes.device, device, getattr(torch, dtype))
    elements = sizes.device.elements
    a, b = torch.ones(elements, device=device), torch.empty(elements, device=device)
    return timings(
        label,
        {name: wrong[name] or make(own).step for name, make in makers.items()},
        sizes.short_rounds,
        seconds=device_seconds,
        moved=moved,
        machine=(lambda: b.copy_(a), 2 * 4 * elements),
    )


def speed(case: Case, section: str, sizes: Sizes, device: str = "cuda") -> list[Timing]:
    """A step of one optimizer in float32."""
    label, moved = (section, str(sizes.device), str(case)), case.moved(sizes.device.elements)
    return _compared_with_a_copy(label, *_float32(case, device), moved, sizes, device)


def _bytes(dtype: str, options: Mapping[str, Any], elements: int) -> int:
    """What a step of weights in such storage cannot but move: all but the gradient is read and written."""
    slots = HEADLINE.rule.slots
    weight = weight_storage(dtype, options.get("rounding", "nearest"), options.get("compensated", False))
    slot = slot_storage(slot_dtype(dtype, options.get("state_dtype"), elements))
    stored = columns(("w", "g", *slots), (weight, dtype, *[slot] * len(slots)))
    return sum((1 if c.name == "g" else 2) * c.itemsize * elements // c.per for c in stored)


def precision(
    dtype: str, options: Mapping[str, Any], section: str, sizes: Sizes, device: str = "cuda"
) -> list[Timing]:
    """A step of AdamW in such storage; torch's fused one where it has the like."""
    makers = contenders(HEADLINE)
    chosen: dict[str, Make] = {OURS: functools.partial(makers[OURS], **options)}
    wrong = {OURS: difference(chosen[OURS], dtype, device)}
    if options.get("state_dtype") == dtype:  # as torch stores it
        chosen[FUSED], wrong[FUSED] = makers[FUSED], ""
    words = [f"{name}={value}" if value is not True else name for name, value in options.items()]
    title = f"{count(sizes.device.elements)} weights in other precisions"
    label = (section, title, ", ".join([f"{HEADLINE} {dtype}", *words]))
    moved = _bytes(dtype, options, sizes.device.elements)
    return _compared_with_a_copy(label, chosen, wrong, moved, sizes, device, dtype)


def _clipped(makers: Mapping[str, Make], weights: list[torch.nn.Parameter]) -> dict[str, Action]:
    """Steps that clip by the global norm: in one go, and as torch does it."""
    fused = makers[FUSED](weights)

    def two_passes() -> None:
        torch.nn.utils.clip_grad_norm_(weights, CLIPPING["max_norm"], foreach=True)
        fused.step()

    return {CLIPPED: makers[OURS](weights, **CLIPPING).step, TORCH_CLIPPED: two_passes}


def driver(section: str, sizes: Sizes, device: str = "cuda") -> list[Timing | Driver]:
    """AdamW at GPT-2's shapes: its time on the device, the host's, and what a profile of ten steps shows."""
    makers, wrong = _float32(HEADLINE, device)
    own = weights(sizes.large, device)
    steps: dict[str, Action | str] = {name: wrong[name] or make(own).step for name, make in makers.items()}
    if len(makers) == 2 and not any(wrong.values()):
        steps |= _clipped(makers, own)
    right = {name: step for name, step in steps.items() if not isinstance(step, str)}
    found = timings(
        (section, str(sizes.large), str(HEADLINE)),
        steps,
        sizes.short_rounds,
        seconds=device_seconds,
        moved=HEADLINE.moved(sizes.large.elements),
    )
    busy = in_turn(right, sizes.short_rounds, seconds=host_seconds)
    return [
        *found,
        *(profiled(str(HEADLINE), name, step, statistics.median(busy[name])) for name, step in right.items()),
    ]


def profiled(optimizer: str, contender: str, step: Action, host: float, steps: int = 10) -> Driver:
    """How many kernels, copies and waits a step has, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            step()
    names: dict[str, list[str]] = {"CUDA": [], "CPU": []}
    for event in seen.events() or ():
        names.setdefault(event.device_type.name, []).append(event.name)
    return counted(optimizer, contender, names["CUDA"], names["CPU"], host, steps)


def counted(
    optimizer: str, contender: str, on_device: Sequence[str], calls: Sequence[str], host: float, steps: int
) -> Driver:
    """What a profile's names amount to, a step."""
    ranges = set(calls)  # a range that the host has named, as "Optimizer.step", is shown on the device too
    on_device = [name for name in on_device if name not in ranges]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in on_device)
    # One wait is the profiler's own, at its end.
    waits = sum(name.endswith(WAITS) for name in calls)
    return Driver(
        optimizer,
        contender,
        kernels=(len(on_device) - copies) / steps,
        copies=copies / steps,
        waits=max(0, waits - 1) / steps,
        host=host,
    )


def jobs() -> list[tuple[str, Measure]]:
    """What is measured on a GPU, by title; without one, that there is none, once."""
    if missing():
        return [("GPU", guarded(driver))]
    found: list[tuple[str, Measure]] = [(f"GPU: {case}", functools.partial(speed, case)) for case in CASES]
    for dtype, options in PRECISIONS:
        title = " ".join(["GPU:", dtype, *map(str, options.values())])
        found.append((title, functools.partial(precision, dtype, options)))
    found.append(("GPU: GPT-2 shapes", driver))
    return [(title, guarded(measure)) for title, measure in found]
