"""Run as a program, for what only a new process can tell; its answer is printed as JSON.

Arguments: "first_step" or "peak_memory", "schuss" or "torch", the optimizer, its keyword arguments as JSON, the
threads, and the shapes of the weights as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Ready = Callable[[list[Any]], Any]


def resident(field: str) -> int:
    """A line of the process's status, in bytes: VmRSS is what it holds, VmHWM the most that it held (Linux only)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(what: str, api: str, optimizer: str, options: str, threads: str, shapes: str) -> None:
    """Import torch, then the API, and measure."""
    import torch

    torch.set_num_threads(int(threads))
    begun = perf_counter()
    if api == "schuss":
        import schuss.torch as optimizers
    else:
        import torch.optim as optimizers
    imported = perf_counter() - begun

    def ready(shapes: list[Any]) -> torch.optim.Optimizer:
        weights = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        return getattr(optimizers, optimizer)(weights, **json.loads(options))

    measure = {"first_step": first_step, "peak_memory": peak_memory}[what]
    print(json.dumps({"import": imported, **measure(ready, json.loads(shapes))}))


def first_step(ready: Ready, shapes: list[Any]) -> dict[str, float]:
    """Seconds of the first step of the process."""
    optimizer = ready(shapes)
    begun = perf_counter()
    optimizer.step()
    return {"step": perf_counter() - begun}


def peak_memory(ready: Ready, shapes: list[Any]) -> dict[str, float]:
    """Bytes that a step held at most, beyond what the process had before there were weights."""
    small = ready([1000] * len(shapes))  # too small to count; its steps load and compile all code
    small.step()
    small.step()
    before = resident("VmRSS")
    large = ready(shapes)
    large.step()  # makes the state
    RESET.write_text("5")
    large.step()
    return {"peak": resident("VmHWM") - before}


if __name__ == "__main__":
    main(*sys.argv[1:])
