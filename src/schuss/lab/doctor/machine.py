"""What the machine offers: a folder for kernels, threads, a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from schuss.compile import cache
from schuss.lab.doctor.finding import Finding, judged
from schuss.lab.doctor.steps import deviation, within
from schuss.machine import cores
from schuss.rules import TABLE


def kernel_cache() -> Iterator[Finding]:
    """Whether kernels outlive the process, and are whole."""
    folder = cache.folder()
    yield judged("kernel cache", "in its folder", f"{folder}", folder == cache.wanted_folder())
    name, content = f"probe-{os.getpid()}.o", os.urandom(64)
    try:
        cache.write_checked(name, content)
        same = cache.read(name) == content
    finally:
        (folder / name).unlink(missing_ok=True)
    yield judged("    a file there", "comes back whole", "whole" if same else "lost or changed", same)
    names = [path.name for path in folder.glob("*.o")]
    whole = sum(cache.read(name) is not None for name in names)
    measured = f"{whole} kernels ready" if whole else "cold: each optimizer compiles for about a second, once"
    if whole < len(names):
        measured += f", {len(names) - whole} that will never be read (older or cut short)"
    yield Finding("    kernels", "", measured)


def processors() -> Iterator[Finding]:
    """How many threads a step may use."""
    yield Finding("processors", "", f"{cores()} usable of {os.cpu_count() or 1}")


def gpu() -> Iterator[Finding]:
    """Some steps on the GPU against the reference, where there is one."""
    if not torch.cuda.is_available():
        yield Finding("GPU", "", "none that torch can use")
        return
    for row in TABLE.values():
        yield within(
            deviation(row, {}, torch.float32, "cuda"), f"{row.name} on {torch.cuda.get_device_name()}"
        )
