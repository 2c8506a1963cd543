"""Measure a model without leaving a trace on it.

Everything that a forward and a backward pass can change is put back: buffers (BatchNorm's running
statistics), `.grad` fields, `requires_grad` flags, training mode, attributes of modules, and the random state
of torch, NumPy and Python. Modules work on copies of their buffers, and weights that must move point at a
copy of their memory, so what the user holds is never written, whatever happens in between, Ctrl-C included.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from schuss.randomness import Randomness

Entry = tuple[dict[str, Tensor | None], str, Tensor]
"""Where a buffer is registered, its name there, and the module's own buffer."""


class Start:
    """What every evaluation of a loss begins with besides weights and batch: random draws, and buffers.

    Modules get copies of their buffers to work on, shared where those are; `untouched` puts their own back.
    """

    def __init__(self, randomness: Randomness, parts: Sequence[nn.Module]) -> None:
        """Give the modules their copies."""
        self.randomness = randomness
        self.buffers: list[Entry] = [
            (part.__dict__["_buffers"], name, buffer)
            for part in parts
            for name, buffer in part.__dict__.get("_buffers", {}).items()
            if buffer is not None
        ]
        self.copies: dict[int, tuple[Tensor, int]] = {}
        self._copy(self.buffers)

    def _copy(self, entries: Sequence[Entry]) -> None:
        for own in {id(own): own for _, _, own in entries}.values():
            copy = own.clone()
            self.copies[id(own)] = copy, copy._version  # pyright: ignore[reportPrivateUsage]
        for registry, name, own in entries:
            registry[name] = self.copies[id(own)][0]

    def moved(self) -> list[Entry]:
        """The buffers that were written to or replaced since the last `rewind`."""
        moved: set[int] = set()
        for registry, name, own in self.buffers:
            copy, version = self.copies[id(own)]
            if registry.get(name) is not copy or copy._version != version:  # pyright: ignore[reportPrivateUsage]
                moved.add(id(own))
        return [entry for entry in self.buffers if id(entry[2]) in moved]

    def rewind(self) -> None:
        """Make the next evaluation draw the same numbers from the same buffers."""
        self.randomness.rewind()
        self._copy(self.moved())


@contextmanager
def untouched(modules: Sequence[nn.Module], devices: set[torch.device]) -> Generator[Start]:
    """Put modules and random states back as they were, bit for bit, after the block or whatever ends it.

    Inside the block gradients are recorded (also under `no_grad` and `inference_mode`), attention, recurrent
    cells and weight normalization run on kernels that can be differentiated twice, and compiled parts run
    uncompiled.
    Not covered: Python objects that a forward pass changes in place (a list that it appends to).
    """
    randomness = Randomness(devices)
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    with ExitStack() as stack:
        stack.callback(torch.clear_autocast_cache)
        stack.callback(randomness.rewind)
        for part in parts:
            attributes = dict(part.__dict__)
            registries = {
                name: dict(attributes[name])
                for name in ("_parameters", "_buffers", "_modules")
                if isinstance(attributes.get(name), dict)
            }
            stack.callback(_restore_module, part, attributes, registries)
        for weight in {id(p): p for part in parts for p in part.parameters(recurse=False)}.values():
            _without_gradient(weight, stack)
        start = Start(randomness, parts)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        _make_twice_differentiable(parts, devices, stack)
        yield start


@contextmanager
def restoring(weights: Sequence[Tensor]) -> Generator[None]:
    """Let weights and their `.grad` be changed inside the block; afterwards they are the old ones again."""
    with ExitStack() as stack:
        stack.callback(torch.clear_autocast_cache)
        for weight in weights:
            _without_gradient(weight, stack)
            own = weight.data
            stack.callback(setattr, weight, "data", own)
            weight.data = own.clone(memory_format=torch.preserve_format)
        yield


def _without_gradient(weight: Tensor, stack: ExitStack) -> None:
    """Take a weight's gradient away, once `stack` knows how to give it back."""
    stack.callback(weight.requires_grad_, weight.requires_grad)
    stack.callback(setattr, weight, "grad", weight.grad)
    weight.grad = None


def _restore_module(
    part: nn.Module, attributes: dict[str, Any], registries: dict[str, dict[str, Any]]
) -> None:
    """Give a module its attributes, and the entries of its registries in their order, back."""
    for name in [name for name in part.__dict__ if name not in attributes]:
        del part.__dict__[name]
    part.__dict__.update(attributes)
    for name, entries in registries.items():
        registry = attributes[name]
        if list(registry) != list(entries):
            registry.clear()
        registry.update(entries)


def _make_twice_differentiable(
    parts: Sequence[nn.Module], devices: set[torch.device], stack: ExitStack
) -> None:
    """Choose kernels with a second derivative: fused attention has none, on CPU neither, nor have cuDNN's cells."""
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(part, nn.RNNBase) for part in parts) and any(d.type == "cuda" for d in devices):
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in parts):
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    if any(_normalizes(part) for part in parts):
        stack.enter_context(_WeightNormByParts())


def _normalizes(part: nn.Module) -> bool:
    """Whether a module has weight normalization, old or new."""
    hooks = part._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
    return type(part).__name__ == "_WeightNorm" or any(isinstance(hook, WeightNorm) for hook in hooks)


class _WeightNormByParts(TorchFunctionMode):
    """Weight normalization as the formula stands: torch takes the norm for a constant in a second derivative.

    It does so in its fused kernel, which is used where the norm is over all dimensions but the first or the last.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            func = _weight_norm
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
