"""The kernels on a GPU: their speed compared with a copy's, and what a step at GPT-2's shapes asks of the driver.

Every optimizer in float32, AdamW in low precision too. At GPT-2's shapes AdamW clips as well, compared with torch's
two passes. Times are the device's own, from its events; what the host does is timed apart, while the device is busy.
"""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable, Sequence

import torch

import schuss.torch
from schuss.bench import precision
from schuss.bench.contenders import CASES, HEADLINE, OURS, Case, contenders, disagreement
from schuss.bench.report import Driver, Record, Skipped, Timing
from schuss.bench.sizes import Sizes
from schuss.bench.steps import weights
from schuss.bench.timing import Action, in_turn, timings, wall_seconds
from schuss.compile import device

FUSED = "torch fused"
Measure = Callable[[str, Sizes], Sequence[Record]]
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


def speed(case: Case, section: str, sizes: Sizes, device: str = "cuda") -> list[Timing]:
    """A step of one optimizer on a gigabyte of float32 weights by us and by torch's fused one, and a copy, in turn."""
    elements = sizes.device.elements
    a, b = torch.ones(elements, device=device), torch.empty(elements, device=device)
    return timings(
        (section, str(sizes.device), str(case)),
        _steps(case, weights(sizes.device, device)),
        sizes.short_rounds,
        seconds=device_seconds,
        moved=case.moved(elements),
        machine=(lambda: b.copy_(a), 2 * 4 * elements),
    )


def _steps(case: Case, weights: list[torch.nn.Parameter]) -> dict[str, Action | str]:
    """Our step and that of torch's fused optimizer, or what is wrong with either."""
    makers = {name: make for name, make in contenders(case).items() if name in (OURS, FUSED)}
    return {
        name: disagreement(case, make, weights[0].device.type) or make(weights).step
        for name, make in makers.items()
    }


def driver(section: str, sizes: Sizes, device: str = "cuda") -> list[Timing | Driver]:
    """AdamW at GPT-2's shapes: its time on the device, the host's, and what a profile of ten steps shows."""
    own = weights(sizes.large, device)
    steps = _steps(HEADLINE, own)
    if not any(isinstance(step, str) for step in steps.values()):
        ours = schuss.torch.AdamW(own, max_norm=1.0, skip_nonfinite=True)
        fused = torch.optim.AdamW(own, fused=True)

        def two_passes() -> None:
            torch.nn.utils.clip_grad_norm_(own, 1.0, foreach=True)
            fused.step()

        steps |= {"schuss, clipped": ours.step, "torch, clipped": two_passes}
    label, moved = (section, str(sizes.large), str(HEADLINE)), HEADLINE.moved(sizes.large.elements)
    found = timings(label, steps, sizes.short_rounds, seconds=device_seconds, moved=moved)
    right = {name: step for name, step in steps.items() if not isinstance(step, str)}
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
    for title in precision.PARTS:
        measure = functools.partial(precision.measure, title, device="cuda", seconds=device_seconds)
        found.append((f"GPU: {title}", measure))
    found.append(("GPU: GPT-2 shapes", driver))
    return [(title, guarded(measure)) for title, measure in found]
