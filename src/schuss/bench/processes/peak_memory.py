"""Run as a program: print the most memory that a step held beyond what the process had before there were weights.

Arguments: "schuss" or "torch", the optimizer, its keyword arguments as JSON, the threads (0: as torch chooses), the
number of tensors and the elements of each. Linux only: the kernel keeps the peak, and lets it be set back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """A line of the process's status, in bytes: VmRSS is what it holds, VmHWM the most that it held."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(front: str, optimizer: str, options: str, threads: str, tensors: str, elements: str) -> None:
    """Take two steps on weights too small to count, which load and compile all code; then two that count."""
    import torch

    if int(threads):
        torch.set_num_threads(int(threads))
    if front == "schuss":
        import schuss.torch as optimizers
    else:
        import torch.optim as optimizers

    def ready(length: int) -> torch.optim.Optimizer:
        weights = [torch.nn.Parameter(torch.ones(length)) for _ in range(int(tensors))]
        for weight in weights:
            weight.grad = torch.ones(length)
        return getattr(optimizers, optimizer)(weights, **json.loads(options))

    small = ready(1000)
    small.step()
    small.step()
    before = resident("VmRSS")
    large = ready(int(elements))
    large.step()  # makes the state
    RESET.write_text("5")
    large.step()
    print(json.dumps({"peak": resident("VmHWM") - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
