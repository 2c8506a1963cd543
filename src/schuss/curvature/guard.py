"""Measure a model without leaving a trace on it.

Everything that a forward and a backward pass can change is put back: buffers (BatchNorm's running
statistics), `.grad` fields, `requires_grad` flags, training mode, attributes of modules, and the random state
of torch, NumPy and Python. Modules work on copies of their buffers, and weights that must move point at a
copy of their memory, so what the user holds is never written, whatever happens in between, Ctrl-C included.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

REGISTRIES = ("_parameters", "_buffers", "_modules")


class Randomness:
    """The random state of this moment on the CPU and the given devices; `rewind` returns to it."""

    def __init__(self, devices: set[torch.device]) -> None:
        """Remember the state of torch (CPU and `devices`), NumPy's global generator and `random`."""
        self.devices = {device for device in devices if device.type not in ("cpu", "meta")}
        self.cpu = torch.get_rng_state()
        self.accelerators = {device: _generators(device).get_rng_state(device) for device in self.devices}
        self.numpy = np.random.get_state(legacy=False)  # noqa: NPY002  a loss may draw from it
        self.python = random.getstate()

    def rewind(self) -> None:
        """Go back to the remembered state, so that the same draws (a dropout mask) follow again."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators.items():
            _generators(device).set_rng_state(state, device)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def _generators(device: torch.device) -> Any:
    return torch.get_device_module(device)


def unwrapped(model: Any) -> Any:
    """The module inside a `torch.compile` wrapper: its kernels have no second derivative."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod
    return model


@contextmanager
def untouched(modules: Sequence[nn.Module], devices: set[torch.device]) -> Generator[Randomness]:
    """Put modules and random states back as they were, bit for bit, after the block or whatever ends it.

    Inside the block gradients are recorded (also under `no_grad` and `inference_mode`), attention and
    recurrent cells run on kernels that can be differentiated twice, and compiled parts run uncompiled.
    Not covered: Python objects that a forward pass changes in place (a list that it appends to).
    """
    randomness = Randomness(devices)
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    undo: list[Callable[[], None]] = [randomness.rewind]
    try:
        for part in parts:
            undo.append(_restorer(part))
        weights = {id(p): p for part in parts for p in part.parameters(recurse=False)}.values()
        for weight in weights:
            undo.append(_flag_restorer(weight))
            weight.grad = None
        _replace_buffers(parts)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for context in _twice_differentiable(parts, devices):
                stack.enter_context(context)
            yield randomness
    finally:
        for restore in reversed(undo):
            restore()
        torch.clear_autocast_cache()


@contextmanager
def moved(weights: Sequence[Tensor]) -> Generator[None]:
    """Let weights and their `.grad` be changed inside the block; afterwards they are the old ones again."""
    undo: list[Callable[[], None]] = []
    try:
        for weight in weights:
            undo.append(_flag_restorer(weight))
            weight.grad = None
            _lend(weight, undo)
        yield
    finally:
        for restore in reversed(undo):
            restore()
        torch.clear_autocast_cache()


def _lend(tensor: Tensor, undo: list[Callable[[], None]]) -> None:
    """Point `tensor` at a copy of its memory, once `undo` knows how to point it back."""
    own = tensor.data

    def restore() -> None:
        tensor.data = own

    undo.append(restore)
    tensor.data = own.clone(memory_format=torch.preserve_format)


def _flag_restorer(weight: Tensor) -> Callable[[], None]:
    grad, flag = weight.grad, weight.requires_grad

    def restore() -> None:
        weight.grad = grad
        weight.requires_grad_(flag)

    return restore


def _replace_buffers(parts: Sequence[nn.Module]) -> None:
    """Give the modules copies of their buffers, shared where those are; `_restorer` undoes it."""
    copies: dict[int, Tensor] = {}
    for part in parts:
        registry = cast("dict[str, Tensor | None]", part.__dict__.get("_buffers", {}))
        for name, buffer in registry.items():
            if buffer is not None:
                registry[name] = copies.setdefault(id(buffer), buffer.clone())


def _restorer(part: nn.Module) -> Callable[[], None]:
    attributes = dict(part.__dict__)
    registries = {
        name: dict(attributes[name]) for name in REGISTRIES if isinstance(attributes.get(name), dict)
    }

    def restore() -> None:
        for name in [name for name in part.__dict__ if name not in attributes]:
            del part.__dict__[name]
        part.__dict__.update(attributes)
        for name, entries in registries.items():
            registry = attributes[name]
            if list(registry) != list(entries):
                registry.clear()
            registry.update(entries)

    return restore


def _twice_differentiable(parts: Sequence[nn.Module], devices: set[torch.device]) -> Iterator[Any]:
    yield sdpa_kernel(
        SDPBackend.MATH
    )  # the fused attention kernels have no second derivative, on CPU neither
    yield _no_attention_fast_path()
    if any(isinstance(part, nn.RNNBase) for part in parts) and any(d.type == "cuda" for d in devices):
        yield torch.backends.cudnn.flags(enabled=False)  # nor have cuDNN's recurrent cells
    if any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None for part in parts
    ):
        yield torch.compiler.set_stance("force_eager")


@contextmanager
def _no_attention_fast_path() -> Generator[None]:
    """Keep values without a graph on the path that values with a graph take."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
