"""What the machine offers: a folder for kernels, threads, a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch

import schuss.torch as front
from schuss.compile import cache
from schuss.compile.reference import Reference
from schuss.lab.doctor.finding import Finding, judged
from schuss.machine import cores
from schuss.rules import TABLE


def kept_kernels() -> Iterator[Finding]:
    """Whether kernels outlive the process, and are whole."""
    wanted = cache.wanted_folder()
    place = cache.folder()
    yield judged("kernel cache", "in its folder", f"{place}", place == wanted)
    name, content = f"probe-{os.getpid()}.o", os.urandom(64)
    try:
        cache.write_checked(name, content)
        kept = cache.read(name) == content
    finally:
        (place / name).unlink(missing_ok=True)
    yield judged("    a file there", "comes back whole", "whole" if kept else "lost or changed", kept)
    names = [path.name for path in place.glob("*.o")]
    whole = sum(cache.read(name) is not None for name in names)
    measured = f"{whole} kernels ready" if whole else "cold: each optimizer compiles for about a second, once"
    if whole < len(names):
        measured += f", {len(names) - whole} that will never be read (older or cut short)"
    yield Finding("    kernels", "", measured, "note")


def processors() -> Iterator[Finding]:
    """How many threads a step may use."""
    usable, there = cores(), os.cpu_count() or 1
    yield Finding("processors", "", f"{usable} usable of {there}", "note")


def gpu() -> Iterator[Finding]:
    """A step on the GPU against the reference, where there is one."""
    if not torch.cuda.is_available():
        yield Finding("GPU", "", "none that torch can use", "note")
        return
    device = torch.device("cuda")
    start, gradient = np.linspace(-1, 1, 1001), np.cos(np.arange(1001.0))
    for name in TABLE:
        rule = TABLE[name].rule()
        w = torch.tensor(start, dtype=torch.float32, device=device, requires_grad=True)
        optimizer = getattr(front, name)([w])
        reference = Reference(rule, w.detach().double().cpu().numpy())
        for _ in range(3):
            w.grad = torch.tensor(gradient, dtype=torch.float32, device=device)
            optimizer.step()
            reference.step(w.grad.double().cpu().numpy())
        error = float(np.abs(w.detach().double().cpu().numpy() - reference.w).max())
        about = f"{name} on {torch.cuda.get_device_name()}"
        yield judged(about, "the reference", f"{error:.1g} off", error < 1e-5)
