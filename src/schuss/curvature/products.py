"""Products of a vector with the Hessian or the Gauss-Newton matrix, without ever forming the matrix.

They are exact to rounding. Only where an operation has no second derivative (a custom function that says so, a
compiled function, some fused kernels) or a wrong one are they differences of gradients, and a warning says so.

Sources: Pearlmutter 1994 (Hessian-vector products at the cost of two gradients); Schraudolph 2002 (Gauss-Newton).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from schuss.curvature import differences
from schuss.curvature.differences import REFUSALS, changes, wrong_second_derivatives
from schuss.curvature.memory import SPARE
from schuss.curvature.objective import Loss, Model, Objective, Vector, checked, derivatives, finite, objective
from schuss.errors import refusal
from schuss.newton.products import Jacobian, Parts, pull

Multiply = Callable[[Sequence[Tensor]], Parts]
"""A direction, as tensors shaped as the weights, to the product with it."""


def hvp(model: Model, loss: Loss, batch: Any, vector: Vector) -> Any:
    r"""The Hessian of the loss times a vector, H v = ∇(∇L · v), exact to rounding.

    Args:
        model: an `nn.Module`, or the point x of a plain function: a tensor, or a list or dict of tensors.
        loss: `loss(model, batch)`, a scalar tensor.
        batch: handed to `loss` as it is: a tensor, a tuple, a dict, None; `Pieces([...])` for one that does not fit
            at once.
        vector: n numbers, one for each trainable weight (tied weights once): a flat tensor in the order of
            `model.parameters()`, a list of tensors shaped as the weights, or a dict of them by name.
            For a plain tensor x also a tensor of x's shape.

    Returns:
        H v in the form of `vector`, in units of loss per weight². Detached: it has no graph.

    Cost: two to three gradients; memory for two vectors besides the graph. The loss is evaluated once, so this is the
    one measurement that cannot tell whether it changes between calls, nor whether an operation's own second derivative
    is wrong: others compare their first product with a difference of gradients.

    Everything stays bit for bit as it was; dropout draws the mask that the next training step would draw; attention
    runs on the kernel that has a second derivative. Where an operation has none on any kernel, H v is a central
    difference of gradients, and a warning says how accurate.

    Raises:
        ValueError: the loss is not a finite scalar or has no gradient, the vector does not fit, H v is not
            finite.

    >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    >>> rosenbrock = lambda x, _: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    >>> hvp(x, rosenbrock, None, torch.tensor([1.0, 0.0], dtype=torch.float64))
    tensor([ 802., -400.], dtype=torch.float64)
    """
    return _product(model, loss, batch, vector, "hessian")


def ggnvp(model: Model, loss: Loss, batch: Any, vector: Vector) -> Any:
    r"""The generalised Gauss-Newton matrix times a vector, G v = Jᵀ (∂²ℓ/∂z²) J v, exact to rounding.

    z are the model's outputs, J their derivative by the weights and ℓ the loss as a function of z. G leaves
    out the curvature of the model itself; it has no negative eigenvalue where ℓ is convex in z. Terms of the
    loss that use the weights directly (a penalty ½λ‖w‖²) count in full.

    The outputs are what `model(...)` returns wherever the loss calls it. For a plain function, or where the
    loss does not call the model itself, give the pair `(forward, criterion)` as `loss`:
    `criterion(forward(model, batch), batch)`.

    Arguments, return value, guarantees and errors are those of `hvp`; besides, a loss is refused that changes between
    two calls, is computed inside the model's forward (there are no outputs to split it at), or has an operation
    without a second derivative.

    >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    >>> residuals = lambda x, _: torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])
    >>> squares = lambda r, _: r.square().sum()
    >>> ggnvp(x, (residuals, squares), None, torch.tensor([1.0, 0.0], dtype=torch.float64))
    tensor([ 802., -400.], dtype=torch.float64)
    """
    return _product(model, loss, batch, vector, "ggn")


def _product(model: Model, loss: Loss, batch: Any, vector: Vector, matrix: str) -> Any:
    with objective(model, loss, batch) as f:
        row, form = f.row(vector)
        curvature = Curvature(f, matrix, check=False)
        product = curvature(row[None])[0]
        if curvature.loss is not None and matrix == "ggn":
            f.agree(curvature.loss, f.value())
        return form(product)


class Curvature:
    """The Hessian ("hessian") or Gauss-Newton matrix ("ggn") of an objective, applied to blocks of rows.

    The graph of one evaluation is stored for a batch in one piece; for `Pieces` each block passes over the pieces once.
    Unless `check` is False, the first Hessian product is compared with a difference of gradients, at the cost of
    one more product and three to seven gradients; where it is wrong, this and all later ones are such differences.
    """

    def __init__(self, f: Objective, matrix: str = "hessian", *, check: bool = True) -> None:
        """Nothing is evaluated before the first product."""
        if matrix not in ("hessian", "ggn"):
            raise refusal("matrix", matrix, "one of ('hessian', 'ggn')")
        f.claim("a curvature-vector product", SPARE)
        self.f, self.matrix = f, matrix
        self.recorded: Multiply | None = None
        self.loss: float | None = None
        self.missing: NoSecondDerivative | None = None
        self.warned = False
        self.unchecked = check and matrix == "hessian"

    def __call__(self, rows: Tensor) -> Tensor:
        """The products of `rows` (b × n), as rows."""
        if self.missing is None:
            try:
                out = self._exactly(rows)
                if self.unchecked:
                    self.unchecked = False
                    self._check(rows[0], out[0])
                return finite(out, "curvature-vector product")
            except NoSecondDerivative as missing:
                if self.matrix == "ggn":
                    raise NoSecondDerivative(
                        f"{missing}, and a GGN-vector product needs one. Use other kernels, or "
                        'the Hessian (hvp, matrix="hessian"), whose products can be differences of gradients.'
                    ) from missing
                self.recorded, self.missing = None, missing
        out = torch.stack([differences.product(self.f, row) for row in rows])
        first = next((i for i, product in enumerate(out) if bool(product.any())), None)
        if first is not None and not self.warned:
            self.warned = True
            differences.warn(self.f, str(self.missing), rows[first], out[first])
        return finite(out, "curvature-vector product")

    def _check(self, row: Tensor, product: Tensor) -> None:
        """Raise if a product, and one with a random direction, are not those of this loss."""
        finite(product, "curvature-vector product")
        other = torch.randn(1, self.f.n, generator=torch.Generator().manual_seed(1))
        other = (other / other.norm()).to(self.f.device, self.f.dtype)
        bent = self._exactly(other)
        self.recorded = None  # two graphs at once might not fit
        reason = wrong_second_derivatives(self.f, (row, product), (other[0], bent[0]))
        if reason:
            raise NoSecondDerivative(reason)

    def _exactly(self, rows: Tensor) -> Tensor:
        f, pieces, out = self.f, self.f.pieces, self.f.zeros(len(rows))
        evaluate, total = self.recorded is None, 0.0
        if evaluate:
            f.rewind()
        for piece, fraction in pieces:
            multiply = self.recorded
            if multiply is None:
                value, multiply = (_hessian if self.matrix == "hessian" else _gauss_newton)(f, piece)
                total += fraction * value
            if len(pieces) == 1:
                self.recorded = multiply
            for row, product in zip(rows, out, strict=True):
                for part, target in zip(multiply(f.directions(row)), f.split(product), strict=True):
                    if part is not None:
                        target.add_(part.to(target), alpha=fraction)
        if evaluate:
            f.agree(total if self.loss is None else self.loss, total)
            self.loss = total
        return out


class NoSecondDerivative(ValueError):  # noqa: N818  (it says what is missing, not what went wrong)
    """An operation in the model or the loss can be differentiated only once."""


def _check_graph(gradient: Parts) -> None:
    """Refuse a gradient with functions marked `once_differentiable` in its graph.

    They leave a node that raises when it is reached; `autograd.grad` never goes there, because no weight lies
    behind it, and would count their part of the curvature as 0 without a word.
    """
    waiting: list[Any] = [g.grad_fn for g in gradient if g is not None and g.requires_grad]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise NoSecondDerivative("A function in the loss can be differentiated only once")
        new = {following for following, _ in node.next_functions if following is not None} - known
        known |= new
        waiting.extend(new)


@contextmanager
def _second_derivatives() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        if not REFUSALS.search(str(error)):
            raise
        said = str(error).splitlines()[0]
        raise NoSecondDerivative(f"An operation in the loss has no second derivative ({said})") from error


def _hessian(f: Objective, piece: Any) -> tuple[float, Multiply]:
    """The loss on one piece, and its recorded gradient as a function that differentiates it along a direction."""
    with _second_derivatives():
        loss = f.evaluate(piece)
        gradient = derivatives(loss, f.weights, create_graph=True)
        _check_graph(gradient)
    constant = [i for i, g in enumerate(gradient) if g is not None and not g.requires_grad]
    if constant and changes(f, constant):
        raise NoSecondDerivative("An operation in the loss hides how its gradient depends on the weights")

    @_second_derivatives()
    def multiply(direction: Sequence[Tensor]) -> Parts:
        return pull(gradient, f.weights, direction)

    return float(loss.detach()), multiply


def _gauss_newton(f: Objective, piece: Any) -> tuple[float, Multiply]:
    """The loss on one piece, and its recorded J and ∂²ℓ, with the loss a function ℓ(z, w) of outputs and weights.

    For u = (J v, v) and (a, b) = ∇²ℓ u the product is G v = Jᵀ a + b.
    """
    with _second_derivatives():
        outputs, cut, loss = _cut_at_outputs(f, piece)
        ends = [*cut, *f.weights]
        slope = derivatives(loss, ends, create_graph=True)
        jacobian = Jacobian(outputs, f.weights)
        _check_graph(jacobian.recorded()[1])

    @_second_derivatives()
    def multiply(direction: Sequence[Tensor]) -> Parts:
        curved = pull(slope, ends, [*jacobian(direction), *direction])
        pairs = zip(jacobian.transposed(curved[: len(cut)]), curved[len(cut) :], strict=True)
        return [a if b is None else b if a is None else a + b for a, b in pairs]

    return float(loss.detach()), multiply


def _cut_at_outputs(f: Objective, piece: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The model's outputs z with their graph, detached copies, and the loss as a function of the copies."""
    outputs: list[Tensor] = []
    cut: list[Tensor] = []

    def swap(thing: Any) -> Any:
        if isinstance(thing, Tensor):
            if not thing.requires_grad:
                return thing
            outputs.append(thing)
            cut.append(thing.detach().requires_grad_())
            return cut[-1]
        if isinstance(thing, Mapping):
            changed: Any = copy.copy(thing)
            for key, value in thing.items():
                changed[key] = swap(value)
            return changed
        if isinstance(thing, tuple) and hasattr(thing, "_fields"):
            return type(thing)(*[swap(value) for value in thing])
        if isinstance(thing, list | tuple):
            return type(thing)(swap(value) for value in thing)
        return thing

    if isinstance(f.loss, tuple):
        forward, criterion = f.loss
        loss = checked(criterion(swap(forward(f.model, piece)), piece))
    elif isinstance(f.model, nn.Module):
        handle = f.model.register_forward_hook(lambda module, inputs, output: swap(output))
        try:
            loss = f.evaluate(piece)
        finally:
            handle.remove()
    else:
        advice = "Gauss-Newton needs to know what a plain function outputs."
        raise refusal("loss", f.loss, "a pair (forward, criterion)", advice)
    if not outputs:
        raise ValueError(
            "loss(model, batch) never called the model, or its outputs have no gradient, so there is "
            "nothing to split the loss at. Give the pair (forward, criterion) as loss."
        )
    if any(output.numel() == 1 and bool(output.detach() == loss.detach()) for output in outputs):
        raise ValueError(
            "the model returns the loss itself, so there are no outputs to split it at. Let the loss be "
            "computed outside the model, or give the pair (forward, criterion) as loss."
        )
    return outputs, cut, loss
