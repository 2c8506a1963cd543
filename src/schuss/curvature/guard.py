"""Measure a model without leaving a trace on it.

Everything that a forward and a backward pass can change is put back: buffers (BatchNorm's running
statistics), `.grad` fields, `requires_grad` flags, training mode, attributes of modules, and the random state
of torch, NumPy and Python. Modules work on copies of their buffers, and weights that must move point at a
copy of their memory, so what the user holds is never written, whatever happens in between, Ctrl-C included.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from schuss.randomness import Randomness

REGISTRIES = ("_parameters", "_buffers", "_modules")


class Buffers:
    """Copies of the buffers of some modules, shared where those are; `rewind` gives them their first values again.

    The modules' own buffers are never written: `_restorer` puts them back.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        """Give the modules copies to work on."""
        registries = [cast("dict[str, Tensor | None]", part.__dict__.get("_buffers", {})) for part in parts]
        self.own = [
            (registry, name, buffer)
            for registry in registries
            for name, buffer in registry.items()
            if buffer is not None
        ]
        self.lent: dict[int, Tensor] = {}
        self.versions: dict[int, int] = {}
        self._lend(self.own)

    def _lend(self, entries: Sequence[tuple[dict[str, Tensor | None], str, Tensor]]) -> None:
        for key in {id(own) for _, _, own in entries}:
            self.lent.pop(key, None)
        for registry, name, own in entries:
            copy = self.lent.setdefault(id(own), own.clone())
            self.versions[id(own)] = copy._version  # pyright: ignore[reportPrivateUsage]
            registry[name] = copy

    def moved(self) -> list[tuple[dict[str, Tensor | None], str, Tensor]]:
        """Where a buffer was written to or replaced since the last `rewind`: registry, name, the module's own."""

        def still(entry: tuple[dict[str, Tensor | None], str, Tensor]) -> bool:
            registry, name, own = entry
            lent = self.lent[id(own)]
            return registry.get(name) is lent and lent._version == self.versions[id(own)]  # pyright: ignore[reportPrivateUsage]

        keys = {id(entry[2]) for entry in self.own if not still(entry)}
        return [entry for entry in self.own if id(entry[2]) in keys]

    def rewind(self) -> None:
        """Give the modules fresh copies of the buffers that have moved."""
        self._lend(self.moved())


@dataclass(frozen=True)
class Start:
    """What every evaluation of a loss begins with besides weights and batch: random draws, and buffers."""

    randomness: Randomness
    buffers: Buffers

    def rewind(self) -> None:
        """Make the next evaluation draw the same numbers from the same buffers."""
        self.randomness.rewind()
        self.buffers.rewind()


def unwrapped(model: Any) -> Any:
    """The module inside a `torch.compile` wrapper: its kernels have no second derivative."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod
    return model


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
    undo: list[Callable[[], None]] = [randomness.rewind]
    try:
        for part in parts:
            undo.append(_restorer(part))
        weights = {id(p): p for part in parts for p in part.parameters(recurse=False)}.values()
        for weight in weights:
            undo.append(_flag_restorer(weight))
            weight.grad = None
        start = Start(randomness, Buffers(parts))
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for context in _twice_differentiable(parts, devices):
                stack.enter_context(context)
            yield start
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
    if any(_normalizes(part) for part in parts):
        yield _WeightNormByParts()


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
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


@contextmanager
def _no_attention_fast_path() -> Generator[None]:
    """Keep values without a graph on the path that values with a graph take."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
