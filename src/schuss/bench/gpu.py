"""The kernels on a GPU: their speed beside a copy's, and what a step at GPT-2's shapes asks of host and driver.

Every page in float32, AdamW in other precisions too. At GPT-2's shapes AdamW clips as well, beside torch's two passes.
Times of large steps are the device's own, from its events; what the host does is timed apart, while the device is busy.
"""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch

from schuss.bench import check
from schuss.bench.contenders import OURS, PAGES, Make, Page, contenders
from schuss.bench.report import Driver, Skipped, Timing
from schuss.bench.shapes import Workload, count
from schuss.bench.sizes import Sizes
from schuss.compile import device
from schuss.compile.storage import columns
from schuss.core.storage import slot_dtype, slot_storage, weight_storage

HEADLINE = Page("AdamW")
COPY, FUSED, CLIPPED, TORCH_CLIPPED = "copy", "torch fused", "schuss, clipped", "torch, clipped"
# How AdamW's numbers are kept, beside float32 alone: the dtype of weights and gradients, and the options.
PRECISIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bfloat16", {}),
    ("bfloat16", {"rounding": "stochastic"}),
    ("bfloat16", {"compensated": True}),
    ("bfloat16", {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    ("bfloat16", {"rounding": "stochastic", "state_dtype": "int8"}),
    ("float32", {"state_dtype": "int8"}),
)
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


def guarded(measure: Callable[[str, Sizes], Sequence[Any]]) -> Callable[[str, Sizes], Sequence[Any]]:
    """`measure`, where there is a GPU; elsewhere a word on why not."""

    @functools.wraps(measure)
    def run(section: str, sizes: Sizes) -> Sequence[Any]:
        reason = missing()
        if reason:
            return [Skipped(section, reason)]
        try:
            return measure(section, sizes)
        except torch.OutOfMemoryError as problem:
            return [Skipped(section, f"the GPU has too little free memory ({str(problem).splitlines()[0]})")]
        finally:
            gc.collect()  # an optimizer and its hooks hold each other, and the next page needs the memory
            torch.cuda.empty_cache()

    return run


def in_turn(
    actions: Mapping[str, Callable[[], object]], rounds: int, seconds: Callable[[Callable[[], object]], float]
) -> dict[str, tuple[float, ...]]:
    """Seconds of each action in each round, as `seconds(action)` measures them; each round starts with another."""
    names = list(actions)
    for action in actions.values():
        action()
        action()
    found: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(seconds(actions[name]))
    return {name: tuple(each) for name, each in found.items()}


def device_seconds(action: Callable[[], object], times: int = 5) -> float:
    """A call's time on the device, by its events, over several calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def host_seconds(action: Callable[[], object], times: int = 20) -> float:
    """How long the host is busy with a call, while the device works through what it was given before."""
    torch.cuda.synchronize()
    begun = perf_counter()
    for _ in range(times):
        action()
    passed = perf_counter() - begun
    torch.cuda.synchronize()
    return passed / times


def _moved(
    make: Make, place: str, dtype: str, weights: list[np.ndarray], gradients: list[list[np.ndarray]]
) -> list[np.ndarray]:
    """The weights after a step with each of the gradients, there, as `dtype`."""

    def there(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(place, getattr(torch, dtype), copy=True)

    parameters = [torch.nn.Parameter(there(w)) for w in weights]
    optimizer = make(parameters)
    for step in gradients:
        for parameter, g in zip(parameters, step, strict=True):
            parameter.grad = there(g)
        optimizer.step()
    return [parameter.detach().cpu().float().numpy() for parameter in parameters]


def disagreement(page: Page, make: Make, place: str) -> str:
    """What this contender gets wrong there, or nothing."""
    return check.disagreement(page.rule, functools.partial(_moved, make, place, "float32"), "float32")


def difference(make: Make, dtype: str, place: str) -> str:
    """How far this contender's weights go elsewhere than on the CPU, whose kernels draw the same, if it is far."""
    start, given = check.weights("float32"), check.gradients("float32")
    here, there = (_moved(make, one, dtype, start, given) for one in ("cpu", place))
    before = [torch.from_numpy(w).to(getattr(torch, dtype)).float().numpy() for w in start]
    apart = sum(float(np.square(a - b).sum()) for a, b in zip(here, there, strict=True))
    way = sum(float(np.square(a - w).sum()) for a, w in zip(here, before, strict=True))
    off = (apart / way) ** 0.5 if way else np.inf
    return "" if off <= 0.01 else f"moves the weights {100 * off:.2g} % elsewhere than on the CPU"


def _weights(workload: Workload, place: str, dtype: str = "float32") -> list[torch.nn.Parameter]:
    kind = getattr(torch, dtype)
    weights = [torch.nn.Parameter(torch.randn(shape, device=place, dtype=kind)) for shape in workload.shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    return weights


def _contenders(page: Page, place: str) -> tuple[dict[str, Make], dict[str, str]]:
    """Ours and torch's fused one on this page, and what is wrong with either."""
    found = {name: make for name, make in contenders(page).items() if name in (OURS, FUSED)}
    return found, {name: disagreement(page, make, place) for name, make in found.items()}


def _copier(elements: int, place: str) -> tuple[Callable[[], object], int]:
    """A copy of so many float32 numbers, and the bytes that it moves."""
    a, b = torch.ones(elements, device=place), torch.empty(elements, device=place)
    return lambda: b.copy_(a), 2 * 4 * elements


def speed(page: Page, section: str, sizes: Sizes, place: str = "cuda") -> list[Timing]:
    """A step of one page on a gigabyte of weights, and a copy of as many, in turn."""
    makers, wrong = _contenders(page, place)
    torch.manual_seed(0)
    weights = _weights(sizes.device, place)
    actions = {name: make(weights).step for name, make in makers.items() if not wrong[name]}
    copy, copied = _copier(sizes.device.elements, place)
    rounds = in_turn({COPY: copy, **actions}, sizes.short_rounds, device_seconds)
    machine = tuple(copied / seconds for seconds in rounds[COPY])
    moved = page.moved(sizes.device.elements)
    timing = functools.partial(Timing, section, str(sizes.device), str(page))
    return [
        timing(name, problem=wrong[name])
        if wrong[name]
        else timing(name, rounds=rounds[name], moved=moved, machine=machine)
        for name in makers
    ]


def _bytes(dtype: str, options: Mapping[str, Any], elements: int) -> int:
    """What a step of so kept weights cannot but move: all but the gradient is read and written."""
    slots = HEADLINE.rule.slots
    weight = weight_storage(dtype, options.get("rounding", "nearest"), options.get("compensated", False))
    slot = slot_storage(slot_dtype(dtype, options.get("state_dtype"), elements))
    kept = columns(("w", "g", *slots), (weight, dtype, *[slot] * len(slots)))
    return sum((1 if c.name == "g" else 2) * c.itemsize * elements // c.per for c in kept)


def precision(
    dtype: str, options: Mapping[str, Any], section: str, sizes: Sizes, place: str = "cuda"
) -> list[Timing]:
    """A step of AdamW whose numbers are kept so, and a copy, in turn; torch's fused one where it has the like."""
    makers = contenders(HEADLINE)
    chosen: dict[str, Make] = {OURS: functools.partial(makers[OURS], **options)}
    if options.get("state_dtype") == dtype:  # as torch keeps it
        chosen[FUSED] = makers[FUSED]
    wrong = {OURS: difference(chosen[OURS], dtype, place)}
    torch.manual_seed(0)
    weights = _weights(sizes.device, place, dtype)
    actions = {name: make(weights).step for name, make in chosen.items() if not wrong.get(name)}
    copy, copied = _copier(sizes.device.elements, place)
    rounds = in_turn({COPY: copy, **actions}, sizes.short_rounds, device_seconds)
    machine = tuple(copied / seconds for seconds in rounds[COPY])
    moved = _bytes(dtype, options, sizes.device.elements)
    words = [f"{name}={value}" if value is not True else name for name, value in options.items()]
    title = f"{count(sizes.device.elements)} weights in other precisions"
    timing = functools.partial(Timing, section, title, ", ".join([f"{HEADLINE} {dtype}", *words]))
    return [
        timing(name, problem=wrong[name])
        if wrong.get(name)
        else timing(name, rounds=rounds[name], moved=moved, machine=machine)
        for name in chosen
    ]


def _clipped(
    makers: Mapping[str, Make], weights: list[torch.nn.Parameter]
) -> dict[str, Callable[[], object]]:
    """Steps that clip by the global norm: in one go, and as torch does it."""
    fused = makers[FUSED](weights)

    def two_passes() -> None:
        torch.nn.utils.clip_grad_norm_(weights, CLIPPING["max_norm"], foreach=True)
        fused.step()

    return {CLIPPED: makers[OURS](weights, **CLIPPING).step, TORCH_CLIPPED: two_passes}


def driver(section: str, sizes: Sizes, place: str = "cuda") -> list[Timing | Driver]:
    """AdamW at GPT-2's shapes: its time on the device, the host's, and what a profile of ten steps shows."""
    makers, wrong = _contenders(HEADLINE, place)
    weights = _weights(sizes.large, place)
    steps = {name: make(weights).step for name, make in makers.items() if not wrong[name]}
    if len(steps) == 2:
        steps |= _clipped(makers, weights)
    rounds = in_turn(steps, sizes.short_rounds, device_seconds)
    busy = in_turn(steps, sizes.short_rounds, host_seconds)
    timing = functools.partial(Timing, section, str(sizes.large), str(HEADLINE))
    moved = HEADLINE.moved(sizes.large.elements)
    found: list[Timing | Driver] = [
        timing(name, problem=problem) for name, problem in wrong.items() if problem
    ]
    for name, step in steps.items():
        found.append(timing(name, rounds=rounds[name], moved=moved))
        found.append(profiled(str(HEADLINE), name, step, statistics.median(busy[name])))
    return found


def profiled(page: str, contender: str, step: Callable[[], object], host: float, steps: int = 10) -> Driver:
    """How many kernels, copies and waits a step has, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            step()
    events = list(seen.events() or ())
    return counted(
        page,
        contender,
        [e.name for e in events if e.device_type.name == "CUDA"],
        [e.name for e in events if e.device_type.name == "CPU"],
        host,
        steps,
    )


def counted(
    page: str, contender: str, on_device: Sequence[str], calls: Sequence[str], host: float, steps: int
) -> Driver:
    """What a profile's names amount to, a step."""
    ranges = set(calls)  # a range that the host has named, as "Optimizer.step", is shown on the device too
    on_device = [name for name in on_device if name not in ranges]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in on_device)
    # One wait is the profiler's own, at its end.
    waits = sum(name.endswith(WAITS) for name in calls)
    return Driver(
        page,
        contender,
        kernels=(len(on_device) - copies) / steps,
        copies=copies / steps,
        waits=max(0, waits - 1) / steps,
        host=host,
    )


def jobs() -> list[tuple[str, Callable[[str, Sizes], Sequence[Any]]]]:
    """What is measured on a GPU, by title; without one, that there is none, once."""
    if missing():
        return [("GPU", guarded(driver))]
    every = [HEADLINE, *(page for page in PAGES if page != HEADLINE)]
    return [
        *((f"GPU: {page}", guarded(functools.partial(speed, page))) for page in every),
        *(
            (
                f"GPU: {dtype} {' '.join(map(str, options.values()))}".rstrip(),
                guarded(functools.partial(precision, dtype, options)),
            )
            for dtype, options in PRECISIONS
        ),
        ("GPU: GPT-2 shapes", guarded(driver)),
    ]
