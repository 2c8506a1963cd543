"""What is to be measured, listed before any of it is: one job a table's row, or a section that is one thing."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from schuss.bench import arrays, gpu, precision, processes, sparse, steps
from schuss.bench.contenders import CASES, HEADLINE
from schuss.bench.report import Record
from schuss.bench.sizes import SECTIONS, Sizes
from schuss.machine import cores, processor

PACKAGES = ("schuss", "torch", "numpy", "numba", "triton", "torch-optimi", "pytorch_optimizer")


@dataclass(frozen=True)
class Job:
    """A part of the benchmark that is measured in one go."""

    section: str
    title: str
    run: Callable[[], Sequence[Record]]


def jobs(sizes: Sizes, only: Collection[str] = ()) -> list[Job]:
    """The jobs of the sections in `only`, or of all, in the order in which they are shown.

    `gpt2` is AdamW alone at GPT-2's shapes, `optimizers` every optimizer there. Bandwidth is always measured.
    """
    chosen = {"bandwidth", *(only or SECTIONS)}
    large = CASES if "optimizers" in chosen else [HEADLINE] if "gpt2" in chosen else []
    workloads = [("gpt2", sizes.large, large)]
    workloads += [("small", workload, CASES) for workload in sizes.small if "small" in chosen]
    workloads += [("mlp", sizes.mlp, CASES)] if "mlp" in chosen else []
    dense = [
        Job(
            section,
            f"{workload.name}: {case}",
            functools.partial(steps.step, section, workload, case, sizes),
        )
        for section, workload, cases in workloads
        for case in cases
    ]
    others: list[tuple[str, str, Callable[[str, Sizes], Sequence[Record]]]] = [
        ("first-step", "first step of a process", processes.first_step),
        ("sparse", "sparse gradients", sparse.measure),
        *(("precision", title, functools.partial(precision.measure, title)) for title in precision.PARTS),
        ("numpy", "the NumPy API", arrays.measure),
        ("memory", "peak memory", processes.peak_memory),
        *(("gpu", title, measure) for title, measure in gpu.jobs()),
    ]
    return [
        Job("bandwidth", "torch.add", functools.partial(steps.bandwidth, "bandwidth", sizes)),
        *dense,
        *(
            Job(section, title, functools.partial(measure, section, sizes))
            for section, title, measure in others
            if section in chosen
        ),
    ]


def machine() -> dict[str, Any]:
    """The processor by name, the cores and threads in use, and the versions of all that is compared."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "packages": versions,
    }
