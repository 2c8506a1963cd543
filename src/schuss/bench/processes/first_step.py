"""Run as a program: import torch, then the front, then take the first step; print what each took, in seconds.

Arguments: "schuss" or "torch", the optimizer, the threads (0: as torch chooses), and the shapes as JSON.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter


def main(front: str, optimizer: str, threads: str, shapes: str) -> None:
    """Take the first step of a process."""
    import torch

    if int(threads):
        torch.set_num_threads(int(threads))
    begun = perf_counter()
    if front == "schuss":
        import schuss.torch as optimizers
    else:
        import torch.optim as optimizers
    imported = perf_counter() - begun
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in json.loads(shapes)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    stepping = getattr(optimizers, optimizer)(weights)
    begun = perf_counter()
    stepping.step()
    print(json.dumps({"import": imported, "step": perf_counter() - begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])
