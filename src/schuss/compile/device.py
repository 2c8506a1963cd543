"""Many tensors on a GPU, one launch: what is kept there, and what is sent at each step.

The host waits for nothing. It looks whether an address has changed, works out the scalars of the step, and sends what
is new; the device does the rest when it gets there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from schuss.compile import gpu
from schuss.compile.formula import Formula
from schuss.compile.launch import Launch
from schuss.rules.rule import Rule

Array = np.ndarray[Any, Any]


@functools.cache
def _can_run(index: int) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        warnings.warn(
            "Triton needs a C compiler and finds none, so a step on the GPU runs as many operations instead of one "
            "kernel. Try installing gcc, or setting CC.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 0)


def runs_on(device: torch.device) -> bool:
    """Whether kernels can run there: on AMD's GPUs, on NVIDIA's from Ampere on, where Triton is installed."""
    return device.type == "cuda" and _can_run(device.index or 0)


def _send(array: Array, place: torch.Tensor) -> None:
    """Copy a small array to the device, without waiting for it.

    PyTorch gives pinned memory to someone else only once the copies from it are done, so that a host that runs
    ahead by many steps overwrites nothing.
    """
    here = torch.from_numpy(array)
    place.copy_(here.pin_memory() if place.is_cuda else here, non_blocking=place.is_cuda)


class Tensors:
    """What a launch knows of its tensors: addresses by column, a length, and which coefficients apply."""

    def __init__(self, columns: int, lengths: Sequence[int], device: torch.device) -> None:
        whole = np.asarray(lengths, dtype=np.int64)
        rows_of = -(-whole // gpu.ROW)
        owner = np.repeat(np.arange(len(whole)), rows_of)
        first = np.cumsum(rows_of) - rows_of
        rows = np.column_stack([owner, (np.arange(len(owner)) - first[owner]) * gpu.ROW])
        self.elements = int(whole.sum())
        self.rows = torch.empty(rows.shape, dtype=torch.int64, device=device)
        _send(rows, self.rows)
        self.cells = np.zeros((len(whole), columns + 2), dtype=np.int64)
        self.cells[:, -2] = whole
        self.address = 0
        self.there = torch.empty(self.cells.shape, dtype=torch.int64, device=device)
        self.changed = True

    def place(self, column: int, addresses: Array) -> None:
        """Say where each tensor's memory of this column is."""
        self.cells[:, column] = addresses
        self.changed = True

    def assign(self, which: Array) -> None:
        """Say which row of the coefficient matrix moves each tensor."""
        self.cells[:, -1] = which
        self.changed = True

    def on_device(self) -> torch.Tensor:
        """The same on the device: sent again only if something changed."""
        if self.changed:
            _send(self.cells, self.there)
            self.changed = False
        return self.there


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "A step cannot be captured in a CUDA graph: its scalars come from the host. Capture the forward and "
            "backward pass, and call step() after each replay; it is one launch."
        )


class DeviceLaunch(Launch):
    """All tensors on one device that one kernel moves in one call.

    `lengths`, `groups` and `members` are tensor by tensor, as of `Launch`. Scalars are computed on the host and sent
    along; nothing waits for the device.
    """

    def __init__(
        self,
        formula: Formula,
        dtypes: tuple[str, ...],
        lengths: Sequence[int],
        groups: Sequence[int],
        members: Sequence[int],
        device: torch.device,
    ) -> None:
        _refuse_capture(device)
        self.tensors = Tensors(len(dtypes), lengths, device)
        self.grid = (len(self.tensors.rows),)
        self.function = gpu.kernel(formula, dtypes)
        self.real = gpu.compute_dtype(dtypes)
        self.device = device
        self.coefficients = torch.empty(0, device=device)
        super().__init__(formula, self._launch, self.tensors, groups, members)  # pyright: ignore[reportArgumentType]

    def step(
        self,
        ledger: Array,
        rules: Sequence[Rule] | Mapping[int, Rule],
        scales: Sequence[float],
        workers: int = 1,
    ) -> None:
        """Take one step of every tensor; the device has its own workers."""
        _refuse_capture(self.device)
        super().step(ledger, rules, scales, 1)

    def _launch(self, table: int, matrix: int, first: int, last: int) -> None:
        """What `Launch` calls with addresses on the host; here they are those of `tensors` and `matrix`."""
        if not self.grid[0]:
            return
        with torch.cuda.device(self.device if self.device.type == "cuda" else -1):
            if self.coefficients.shape != self.matrix.shape:
                dtype = getattr(torch, self.real)
                self.coefficients = torch.empty(self.matrix.shape, dtype=dtype, device=self.device)
            _send(self.matrix.astype(self.real), self.coefficients)
            self.function[self.grid](
                self.tensors.rows, self.tensors.on_device(), self.coefficients, **gpu.OPTIONS
            )
