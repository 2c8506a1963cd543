"""Where tensors are and how they lie there: what a launch stands on, checked before every step.

A kernel is given addresses. It walks as many numbers from each as the weight has, of the dtype that it was compiled
for, and asks nothing. So all of it has to be true of every tensor at every step: length, dtype, device, strides and
address. `Memory` writes it down once and compares it each time.

PyTorch describes a tensor to other libraries in one call of C, DLPack's exchange API (torch 2.10 and later). A compiled
loop makes that call for each tensor and compares what it says; a thousand tensors take it some 50 µs. Where the API is
missing, the same is asked tensor by tensor.

What is not in it: that the storage of a gradient was cut short, of a standing tensor that it was freed and then made
anew, smaller, at the same address. And whether a number is noted as conjugate or negative (`lazy`).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from schuss.compile import cpu

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]

PLAIN_TYPES = (Tensor, torch.nn.Parameter, torch.nn.Buffer)

# Below this no allocator gives memory on most systems, but freed memory seems to start there: 0 and an offset.
_LOW = 2**32


def lazy(tensor: Tensor) -> bool:
    """A conjugate or negative that is noted, not yet computed: its memory holds something else."""
    return tensor.is_conj() or tensor.is_neg()


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in memory that has an address."""
    return type(tensor) in PLAIN_TYPES and tensor.layout == torch.strided and tensor.device.type != "meta"


def held(tensor: Tensor) -> bool:
    """Whether the storage of a tensor that is `in_memory` has all of its numbers."""
    if tensor.numel() == 0:
        return True
    ahead = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    storage = tensor.untyped_storage()
    needed = (tensor.storage_offset() + 1 + ahead) * tensor.element_size()
    return storage.data_ptr() != 0 and storage.nbytes() >= needed


def facts(tensor: Tensor | None) -> tuple[Any, ...]:
    """All that says on which path a tensor is moved, but for where it is."""
    if tensor is None:
        return ()
    found = type(tensor), tensor.layout, tensor.dtype, tensor.device, tensor.shape, lazy(tensor)
    if tensor.layout == torch.sparse_coo:
        return *found, tensor.sparse_dim()
    return (*found, tensor.stride(), held(tensor)) if in_memory(tensor) else found


def address(tensor: Tensor) -> int:
    """Where a tensor's memory starts, if it has an address."""
    return tensor.data_ptr() if in_memory(tensor) else 0


# What it reads in `facts`: addresses of functions and of the list of standing tensors, counts, room for one of DLPack's
# descriptions, then what each tensor was: its dimensions, device, dtype, address, shape and strides. What it
# writes in `found`: where the moving tensors are, and whether all is as it was (2: but an address looks strange). It
# needs no exception of its own: where a call has left one that word stays 0.
_TEXT = '''"""Compare tensors with what is written down of them, and find the addresses of those that may move."""

from numba import cfunc
from schuss.compile.memory import call_for_object, call_for_status, prefetch, read_int64, write_int64


@cfunc("void(int64, int64, int64, int64)")
def launch(facts, found, writing, moving):
    describe = read_int64(facts, 0)
    item = read_int64(facts, 1)
    standing = read_int64(facts, 2)
    first = read_int64(facts, 3)
    count = read_int64(facts, 4)
    low = read_int64(facts, 5)
    tensor = facts + 8 * 6
    at = 12
    alike = 1
    write_int64(found, count - first, 0)
    for k in range(count):
        if k + 8 < first:  # far apart in memory: ask for objects to come, and for what their first own word leads to
            prefetch(call_for_object(item, standing, k + 8))
            ahead = read_int64(call_for_object(item, standing, k + 4), 2)
            for line in range(0, 192, 64):
                prefetch(ahead + line)
        if k < first:
            one = call_for_object(item, standing, k)
        else:
            one = call_for_object(item, moving, k - first)
        if one == 0:
            return
        if call_for_status(describe, one, tensor) != 0:
            return
        address = read_int64(tensor, 0) + read_int64(tensor, 5)
        device = read_int64(tensor, 1)
        kind = read_int64(tensor, 2)
        shape = read_int64(tensor, 3)
        strides = read_int64(tensor, 4)
        dimensions = kind & 0xFFFFFFFF
        if dimensions != read_int64(facts, at):
            return
        if writing != 0:
            write_int64(facts, at + 1, device)
            write_int64(facts, at + 2, kind)
            write_int64(facts, at + 3, address)
        other = (device ^ read_int64(facts, at + 1)) | (kind ^ read_int64(facts, at + 2))
        if k < first:
            other |= address ^ read_int64(facts, at + 3)
        at += 4
        elements = 1
        for i in range(dimensions):
            size = read_int64(shape, i)
            stride = read_int64(strides, i)
            if writing != 0:
                write_int64(facts, at, size)
                write_int64(facts, at + 1, stride)
            other |= size ^ read_int64(facts, at)
            if size != 1:
                other |= stride ^ read_int64(facts, at + 1)
            elements *= size
            at += 2
        if other != 0:
            return
        if k >= first:
            write_int64(found, k - first, address)
            if elements != 0 and address < low:
                alike = 2
    write_int64(found, count - first, alike)
'''
_HEAD = 12


@functools.cache
def _describe() -> int:
    """The address of PyTorch's `int f(PyObject *, DLTensor *)`, or 0 where it has none."""
    capsule = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return 0
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The version (its major number in the lower half), an older API, then five functions, of which this is the fourth.
    words = (ctypes.c_int64 * 6).from_address(pointer(capsule, b"dlpack_exchange_api"))
    return words[5] if words[0] & 0xFFFFFFFF == 1 else 0


@functools.cache
def _comparing() -> tuple[Any, int, int]:
    """The compiled loop, and the addresses of the functions that it calls."""
    item = ctypes.cast(ctypes.pythonapi.PyList_GetItem, ctypes.c_void_p).value or 0
    return cpu.load("memory", _TEXT, ctypes.PYFUNCTYPE), _describe(), item


class Memory:
    """The memory of tensors that stay where they are (`standing`), and of some that may be elsewhere at each step.

    All of them keep their length, dtype, device and strides, or do not fit any more. `addresses` are those of the
    moving ones when they last fitted.
    """

    def __init__(self, standing: list[Tensor], moving: list[Tensor]) -> None:
        self.standing = standing
        self.found = np.zeros(len(moving) + 1, dtype=np.int64)
        self.addresses = self.found[:-1]
        self.moved = True
        self._write_down(moving)
        self.seen = b""

    def _write_down(self, moving: list[Tensor]) -> None:
        loop, describe, item = _comparing()
        tensors = [*self.standing, *moving]
        head = [describe, item, id(self.standing), len(self.standing), len(tensors), _LOW]
        head += [0] * (_HEAD - len(head))
        rows = ([count, 0, 0, 0, *[0] * (2 * count)] for count in map(Tensor.dim, tensors))
        self.facts = np.array(head + [word for row in rows for word in row], dtype=np.int64)
        at = self.facts.ctypes.data, self.found.ctypes.data
        loop(*at, 1, id(moving))
        self.compare = functools.partial(loop, *at, 0)

    def fits(self, moving: list[Any]) -> bool:
        """Whether all lies as it did, and the standing tensors where they did; `moved` says that others do not."""
        try:
            self.compare(id(moving))
        except Exception:  # of None, of a sparse gradient or one without memory there is no description
            return False
        return self.found.tobytes() == self.seen or self._moved(moving)

    def _moved(self, moving: list[Any]) -> bool:
        alike = self.found[-1]
        if not alike or (alike == 2 and not all(map(held, moving))):
            return False
        self.seen, self.moved = self.found.tobytes(), True
        return True


class MemoryByCalls(Memory):
    """The same, asked tensor by tensor: for a PyTorch without the exchange API."""

    def _write_down(self, moving: list[Tensor]) -> None:
        self.was = self._described(moving)

    def fits(self, moving: list[Any]) -> bool:
        """As of `Memory`."""
        try:
            alike = self._described(moving) == self.was
        except Exception:
            return False
        self.found[-1] = 0
        if alike:
            self.found[:-1] = list(map(Tensor.data_ptr, moving))
            self.found[-1] = 2 if (self.addresses < _LOW).any() else 1
        return self.found.tobytes() == self.seen or self._moved(moving)

    def _described(self, moving: list[Tensor]) -> Any:
        kinds = [(t.dtype, t.device, t.shape, t.stride()) for t in (*self.standing, *moving)]
        return list(map(Tensor.data_ptr, self.standing)), kinds


def memory(standing: Sequence[Tensor], moving: Sequence[Tensor]) -> Memory:
    """The memory of these tensors, compared the fastest way there is."""
    return (Memory if _describe() else MemoryByCalls)(list(standing), list(moving))
