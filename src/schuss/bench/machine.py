"""What the benchmark ran on, and how fast its memory is."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import torch

from schuss.machine import cores, processor

PACKAGES = ("schuss", "torch", "numpy", "numba", "triton", "torch-optimi", "pytorch_optimizer")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """The processor by name, the cores and threads in use, and the versions of all that is compared."""
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "packages": {package: version for package in PACKAGES if (version := _version(package))},
    }


def adder(elements: int) -> tuple[Callable[[], object], int]:
    """A large `torch.add` into a third vector, and the bytes that it cannot but move."""
    a, b, c = torch.ones(elements), torch.ones(elements), torch.empty(elements)
    return lambda: torch.add(a, b, out=c), 3 * 4 * elements
