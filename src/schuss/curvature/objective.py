"""The loss of one model on one batch as a function of a single vector of weights.

Every measurement of this package starts with `objective`, which yields an `Objective` and leaves no trace.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from schuss.curvature.memory import claim
from schuss.curvature.restore import Start, untouched
from schuss.errors import refusal

Model = nn.Module | Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A module, or the point of a plain function: a tensor, a list or a dict of tensors."""

Loss = Callable[[Any, Any], Tensor] | tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Tensor]]
"""`loss(model, batch)`, or the pair `(forward, criterion)`."""

Vector = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A direction in weight space: flat, one tensor per weight tensor in order, or by name."""

Progress = Callable[[int, int], object]
"""Called as `progress(done, at_most)` after each product of long work."""


@dataclass(frozen=True)
class Pieces:
    """A batch in pieces, for models that cannot take it whole: the loss is Σ weightᵢ · loss(model, batchᵢ).

    The weights default to size/total, right for a mean loss; the size is the first dimension of a piece's first
    tensor or array, and pieces without one count the same. For a summed loss give ones. BatchNorm in training mode sees
    each piece alone, so its loss in pieces is not the loss of the whole batch (a warning says so).

    >>> Pieces([torch.zeros(6, 3), torch.ones(2, 3)]).weights
    (0.75, 0.25)
    """

    batches: Sequence[Any]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Refuse no pieces, and weights that do not fit them; fill in the default weights."""
        if not self.batches:
            raise refusal("batches", list(self.batches), "a list of at least one batch")
        if self.weights is None:
            shapes = [shape_of(piece) for piece in self.batches]
            if len({shape and shape[1:] for shape in shapes}) > 1:
                raise refusal(
                    "batches",
                    shapes,
                    "pieces of one shape, but for the number of examples",
                    "What a mean loss averages over is not known then: give weights=, each piece's part of the whole.",
                )
            sizes = [shape[0] if shape else 1 for shape in shapes]
            object.__setattr__(self, "weights", tuple(size / (sum(sizes) or 1) for size in sizes))
        elif len(self.weights) != len(self.batches) or not all(map(math.isfinite, self.weights)):
            allowed = f"one finite number for each of {len(self.batches)} pieces"
            raise refusal("weights", self.weights, allowed)


def leaves(thing: Any) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold, in order."""
    if isinstance(thing, Mapping):
        thing = list(cast("Mapping[Any, Any]", thing).values())
    if not isinstance(thing, list | tuple):
        yield thing
        return
    for part in cast("Sequence[Any]", thing):
        yield from leaves(part)


def shape_of(batch: Any) -> tuple[int, ...] | None:
    """The shape of the first tensor or array with axes in a batch; None if there is none."""
    shapes = (getattr(leaf, "shape", None) for leaf in leaves(batch))
    return next((tuple(map(int, shape)) for shape in shapes if shape and isinstance(shape, tuple)), None)


class Objective:
    """The loss of a model on a batch as a function of its weights, one vector of length `n`.

    Trainable weights count (`requires_grad`), tied ones once. Vectors live in `dtype`: that of the weights,
    but at least float32. `eps` is the rounding of the coarsest weight, `given` the user's own tensors.
    """

    def __init__(self, model: Model, loss: Loss, batch: Any, start: Start) -> None:
        """Collect the weights of `model`. `batch` may be exchanged later."""
        given = _weights(model)
        if not given:
            raise refusal("model", type(model).__name__, "a model with a weight that requires a gradient")
        for name, weight in given.items():
            if not weight.is_floating_point():
                advice = "Curvature is measured over real weights."
                raise refusal(name, weight.dtype, "of a real floating type", advice)
        self.names, self.given = list(given), list(given.values())
        self.weights = [
            w if w.is_leaf and w.requires_grad else w.detach().requires_grad_() for w in self.given
        ]
        self.model: Any = model
        if isinstance(model, Tensor):
            self.model = self.weights[0]
        elif not isinstance(model, nn.Module):
            by_name = dict(zip(self.names, self.weights, strict=True))
            self.model = by_name if isinstance(model, Mapping) else list(self.weights)
        self.loss, self.batch, self.start = loss, batch, start
        self.sizes = [weight.numel() for weight in self.weights]
        self.n = sum(self.sizes)
        self.device = self.weights[0].device
        self.dtype = torch.float32
        for weight in self.weights:
            self.dtype = torch.promote_types(self.dtype, weight.dtype)
        self.eps = max(torch.finfo(weight.dtype).eps for weight in self.weights)

    @property
    def norm(self) -> float:
        """‖w‖."""
        return math.hypot(*(float(weight.detach().double().norm()) for weight in self.weights))

    @property
    def pieces(self) -> list[tuple[Any, float]]:
        """The batch as (piece, weight); a whole batch is one piece of weight 1."""
        if isinstance(self.batch, Pieces):
            return list(zip(self.batch.batches, cast("Sequence[float]", self.batch.weights), strict=True))
        return [(self.batch, 1.0)]

    def zeros(self, *rows: int) -> Tensor:
        """Vectors of zeros, with these axes in front."""
        return torch.zeros(*rows, self.n, dtype=self.dtype, device=self.device)

    def claim(self, what: str, vectors: int, advice: str = "Freeze some weights.") -> None:
        """Refuse vectors for which there is no memory; see `memory.claim`."""
        claim(what, vectors, self.n, self.dtype, self.device, advice)

    def rewind(self) -> None:
        """Return to the random state and the buffers at the start: the same dropout mask in every pass."""
        self.start.rewind()
        torch.clear_autocast_cache()

    def evaluate(self, piece: Any) -> Tensor:
        """The loss on one piece, a finite scalar; with a graph if gradients are on."""
        if isinstance(self.loss, tuple):
            forward, criterion = self.loss
            return checked(criterion(forward(self.model, piece), piece))
        return checked(self.loss(self.model, piece))

    def value(self, rewind: bool = True) -> float:
        """The loss on the whole batch, without a graph; without `rewind` random draws go on."""
        if rewind:
            self.rewind()
        with torch.no_grad():
            return sum(fraction * float(self.evaluate(piece)) for piece, fraction in self.pieces)

    def passes(self) -> Iterator[tuple[float, float, list[Tensor | None]]]:
        """The weight of each piece, its loss and its gradient, None for weights that play no part."""
        for piece, fraction in self.pieces:
            value = self.evaluate(piece)
            yield fraction, float(value.detach()), derivatives(value, self.weights)

    def gradient(self, rewind: bool = True) -> tuple[float, Tensor]:
        """The loss and its gradient as one vector on the whole batch; without `rewind` random draws go on."""
        if rewind:
            self.rewind()
        total, row = 0.0, self.zeros()
        for fraction, value, gradients in self.passes():
            total += fraction * value
            for part, gradient in zip(self.split(row), gradients, strict=True):
                if gradient is not None:
                    part.add_(gradient.to(part), alpha=fraction)
        return total, finite(row, "gradient")

    def reads_moved_buffers(self) -> bool:
        """Whether an evaluation moves buffers of the model, and would give another loss with other numbers in them."""
        first = self.value()
        moved = [entry for entry in self.start.moved() if entry[2].is_floating_point()]
        if not moved:
            return False
        noise = torch.Generator().manual_seed(0)
        self.rewind()
        for registry, name, own in moved:
            registry[name] = own * (1 + 0.1 * torch.rand(own.shape, generator=noise)).to(own)
        second = self.value(rewind=False)
        self.rewind()
        return second != first

    def steady(self) -> float:
        """The loss, after a second call has given the same number; refused as by `agree` if not."""
        first = self.value()
        self.agree(first, self.value())
        return first

    def agree(self, first: float, second: float) -> None:
        """Refuse a loss that has changed by more than rounding between two calls at the same weights."""
        if abs(first - second) > 100 * self.eps * max(abs(first), abs(second)):
            raise ValueError(
                f"loss(model, batch) changed from {first!r} to {second!r} between two calls with the same "
                "weights, batch and random state. Likely causes: it draws its own data (a shuffled loader, "
                "an iterator), dropout or noise from a generator of its own, or a counter in the model. "
                "Draw the data once and pass it as the batch; use torch's global random state, which is "
                "held fixed here."
            )

    def split(self, row: Tensor) -> list[Tensor]:
        """Views of one vector, shaped as the weights."""
        parts = row.split(self.sizes)
        return [part.view(weight.shape) for part, weight in zip(parts, self.weights, strict=True)]

    def directions(self, row: Tensor) -> list[Tensor]:
        """One vector as tensors of the weights' own shape, dtype and device."""
        return [part.to(weight) for part, weight in zip(self.split(row), self.weights, strict=True)]

    def row(self, vector: Vector) -> tuple[Tensor, Callable[[Tensor], Any]]:
        """A user's vector as one row, and the function that gives a row that vector's form."""
        if isinstance(vector, Tensor):
            shaped = isinstance(self.model, Tensor) and vector.shape == self.model.shape
            if not shaped and vector.shape != (self.n,):
                allowed = f"of shape ({self.n},), one number for each weight"
                raise refusal("vector", tuple(vector.shape), allowed)
            return vector.detach().reshape(-1).to(self.device, self.dtype), lambda row: row.view(vector.shape)
        names, tensors = self.names, list(cast("Sequence[Tensor]", vector))
        if isinstance(vector, Mapping):
            if set(vector) != set(names):
                raise refusal("vector", sorted(vector), f"a dict with the keys {sorted(names)}")
            tensors = [vector[name] for name in names]
        elif len(tensors) != len(names):
            raise refusal("vector", f"{len(tensors)} tensors", f"one for each of the {len(names)} weights")
        for name, tensor, weight in zip(names, tensors, self.weights, strict=True):
            if tensor.shape != weight.shape:
                allowed = f"of the weight's shape {tuple(weight.shape)}"
                raise refusal(f"vector[{name}]", tuple(tensor.shape), allowed)

        def form(row: Tensor) -> Any:
            parts = self.directions(row)
            if not isinstance(vector, Mapping):
                return type(vector)(parts)  # type: ignore[call-arg]
            by_name = dict(zip(names, parts, strict=True))
            return {name: by_name[name] for name in vector}

        flat = [tensor.detach().reshape(-1).to(self.device, self.dtype) for tensor in tensors]
        return torch.cat(flat), form


@contextmanager
def objective(model: Model, loss: Loss, batch: Any) -> Generator[Objective]:
    """The `Objective` of a model; on leaving, the model and all random states are bit for bit what they were."""
    functions = loss if isinstance(loss, tuple) else (loss,)
    if not all(map(callable, functions)):
        raise refusal("loss", loss, "a function loss(model, batch)", "It returns a scalar tensor.")
    while hasattr(model, "_orig_mod"):  # in torch.compile's wrapper, whose kernels have no second derivative
        model = cast(Any, model)._orig_mod
    parts = [part for part in (model, *functions) if isinstance(part, nn.Module)]
    tensors = [
        *_weights(model).values(),
        *(t for part in parts for t in (*part.parameters(), *part.buffers())),
    ]
    with untouched(parts, {tensor.device for tensor in tensors}) as start:
        found = Objective(model, loss, batch, start)
        modules = (module for part in parts for module in part.modules())
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        if len(found.pieces) > 1 and any(isinstance(m, norms) and m.training for m in modules):
            warnings.warn(
                "BatchNorm in training mode normalises each piece alone, so the curvature in pieces is "
                "not that of the whole batch (off by a third in a measured case). Pass the batch "
                "whole, or call model.eval().",
                stacklevel=4,
            )
        yield found


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no torch optimizer: NumPy's have no groups of weights, a name has no weights."""
    if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        given = optimizer if isinstance(optimizer, str) else type(optimizer).__name__
        advice = "Try schuss.torch.AdamW(model.parameters(), lr=0.001)."
        raise refusal("optimizer", given, "a torch optimizer over the model's weights", advice)


def checked(loss: Any) -> Tensor:
    """The loss as a scalar, refused unless it is one finite number."""
    if not isinstance(loss, Tensor):
        raise refusal("loss(model, batch)", loss, "a scalar tensor", "Return the tensor itself, not .item().")
    if loss.numel() != 1:
        advice = "Reduce it with .mean() or .sum()."
        raise refusal("loss(model, batch).shape", tuple(loss.shape), "a scalar's", advice)
    loss = loss.reshape(())
    if not bool(torch.isfinite(loss.detach())):
        advice = (
            "Nothing can be measured here: check the batch for bad values, or go back to weights before "
            "the loss blew up."
        )
        raise refusal("loss(model, batch)", float(loss.detach()), "finite", advice)
    return loss


def derivatives(loss: Tensor, weights: Sequence[Tensor], create_graph: bool = False) -> list[Tensor | None]:
    """The gradient of a scalar by weight, None where a weight plays no part; refused if none does."""
    gradients: Sequence[Tensor | None] = [None] * len(weights)
    if loss.requires_grad:
        try:
            gradients = torch.autograd.grad(loss, list(weights), create_graph=create_graph, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error).lower():
                raise
            advice = (
                "Reentrant checkpointing can be differentiated by loss.backward() only. Call "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
            raise refusal("use_reentrant", True, "False", advice) from error
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "loss(model, batch) has no gradient with respect to the model's weights. Likely causes: it was "
            "computed under no_grad, from .detach()ed or .item() values, with another model than the one "
            "passed, or through torch.utils.checkpoint with use_reentrant=True."
        )
    return [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]


def finite(row: Tensor, what: str) -> Tensor:
    """The row, refused if a number in it is not finite."""
    # A finite sum, one pass over the memory, says that all are; one that is not may only have overflowed.
    if not bool(torch.isfinite(row.sum())) and not bool(torch.isfinite(row).all()):
        bad = int((~torch.isfinite(row)).sum())
        raise ValueError(
            f"the {what} is not finite: {bad} of {row.numel()} numbers are NaN or infinite, though the loss "
            "is finite. Likely causes: a square root or a norm at 0, or an overflow in half precision."
        )
    return row


def _weights(model: Any) -> dict[str, Tensor]:
    """The trainable weights of a module, or what a plain function's point is made of, by name."""
    if isinstance(model, nn.Module):
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found: dict[str, Any] = {"x": model}
    if isinstance(model, Mapping):
        found = dict(cast("Mapping[str, Any]", model))
    elif isinstance(model, list | tuple):
        found = {str(i): part for i, part in enumerate(cast("Sequence[Any]", model))}
    if not all(isinstance(part, Tensor) for part in found.values()):
        raise refusal("model", type(model).__name__, "an nn.Module, a tensor, or a list or dict of tensors")
    return found
